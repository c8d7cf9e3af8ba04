"""Exports a role merged into the base: a policy as plain weights, a reward as a sequence classifier.

Merged weights are made from the base as it was trained on, dequantized, so that they say what was trained. The 4-bit
weights themselves are never merged into. How far the outputs are from those of the trained model is measured.
"""

from __future__ import annotations

import shlex
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import POLICY, SharedBase
from ..engine.base_spec import check_safetensors, load_config, quiet
from ..engine.fast.dense_weights import dense_weights
from ..kit.quantizer import Quantizer
from ..runs import History
from .export_types import CAUSAL, CLASSIFIER, Exported, Place, Target, classifier_head
from .files import save_model, save_tokenizer
from .model_card import card, generates, use_merged
from .ollama import modelfile
from .opened import Opened

PROBES = ("The", "Once upon a time", "Question: what is 2 + 2?\nAnswer:", "def main():\n")


def export_merged(
    opened: Opened,
    quantizer: Quantizer,
    history: History,
    place: Place,
    dtype: torch.dtype,
    target: Target,
) -> Exported:
    """Write a policy's merged weights with their tokenizer and a model card.

    Args:
        opened: the run.
        quantizer: of its recipe.
        history: of the run.
        place: where the export goes.
        dtype: of the weights.
        target: merged or ollama, which adds a Modelfile.
    """
    from transformers import AutoModelForCausalLM

    base, ids, folder = opened.base, _probes(opened.base), place.temporary
    with torch.no_grad(), base.role(POLICY, train=False):
        expected = [base.lm(input_ids=row.to(base.device)).logits.float().cpu() for row in ids]
    model = _plain(opened, AutoModelForCausalLM, dtype)
    _fill(model, base, POLICY)
    with torch.no_grad():
        exported = [model(input_ids=row).logits.float() for row in ids]
    difference = max(float((a - b).abs().max()) for a, b in zip(expected, exported, strict=True))
    scale = max(float(row.abs().max()) for row in expected)
    model.generation_config.eos_token_id = sorted(base.eos_ids)
    save_model(model, folder)
    tokenizer = save_tokenizer(opened.recipe, folder, base.loaded.spec.trust_remote_code)
    name, use = history.name.lower(), use_merged(place.name, CAUSAL)
    text = card(
        opened.recipe,
        history,
        POLICY,
        use + generates(tokenizer, base.eos_ids),
        quantizer,
        merged=difference,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    commands = [f"vllm serve {shlex.quote(place.name)}"]
    if target == "ollama":
        (folder / "Modelfile").write_text(
            modelfile(tokenizer, base, opened.recipe.model.max_length), encoding="utf-8"
        )
        create = f"ollama create {shlex.quote(name)} -f {shlex.quote(f'{place.name}/Modelfile')}"
        commands = [create, f"ollama run {shlex.quote(name)}"]
    return Exported(place.folder, use, commands, difference, scale)


def export_classifier(
    opened: Opened, quantizer: Quantizer, history: History, role: str, place: Place, dtype: torch.dtype
) -> Exported:
    """Write a reward role as a sequence classifier of transformers, with its tokenizer and a model card.

    The classifier's head has no bias, so its scores differ from the reward head's by a constant.
    """
    from transformers import AutoModelForSequenceClassification

    base, ids, folder = opened.base, _probes(opened.base, ended=True), place.temporary
    with torch.no_grad(), base.role(role, train=False):
        each = [
            base.forwards.rewards(
                base.forwards.hidden(row.to(base.device)), torch.tensor([row.shape[1]]), role
            )
            for row in ids
        ]
    expected = torch.cat(each).float().cpu()
    model = _plain(opened, AutoModelForSequenceClassification, dtype, num_labels=1)
    _fill(model, base, role)
    weight, offset = classifier_head(base.roles.head(role))
    model.get_submodule("score").load_state_dict({"weight": weight.to(dtype)})
    tokenizer = save_tokenizer(opened.recipe, folder, base.loaded.spec.trust_remote_code, classifier=True)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.problem_type, model.config.score_offset = "regression", offset
    with torch.no_grad():
        exported = torch.cat([model(input_ids=row).logits[:, 0].float() for row in ids]) + offset
    difference = float((expected - exported).abs().max())
    save_model(model, folder)
    use = use_merged(place.name, CLASSIFIER)
    text = card(opened.recipe, history, role, use, quantizer, merged=difference, offset=offset)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return Exported(place.folder, use, [], difference, float(expected.abs().max()), offset)


def _plain(opened: Opened, kind: Any, dtype: torch.dtype, **options: Any) -> Any:
    """Load the base without quantization into main memory."""
    from transformers.utils import logging

    source, before = opened.base.loaded.spec, logging.get_verbosity()
    config = load_config(source)
    # transformers would warn that a classifier's head is new, but it is filled next.
    logging.set_verbosity_error()
    check_safetensors(source.location, source.revision)
    try:
        with quiet():
            if getattr(config, "quantization_config", None) is not None:
                return _dequantized(opened.base, kind, config, dtype, **options).eval()
            model = kind.from_pretrained(
                source.location,
                revision=source.revision,
                dtype=dtype,
                trust_remote_code=source.trust_remote_code,
                use_safetensors=True,
                **options,
            )
    finally:
        logging.set_verbosity(before)
    return model.eval()


@torch.no_grad()
def _dequantized(base: SharedBase, kind: Any, config: Any, dtype: torch.dtype, **options: Any) -> Any:
    """A model for a checkpoint that is stored quantized, with its plain tensors; `_fill` dequantizes the others."""
    del config.quantization_config
    for key, value in options.items():
        setattr(config, key, value)
    model = kind.from_config(config, dtype=dtype, trust_remote_code=base.loaded.spec.trust_remote_code)
    stored = {name.replace(".base_layer.", "."): tensor for name, tensor in base.lm.state_dict().items()}
    for name, tensor in model.state_dict().items():
        if name in stored and stored[name].shape == tensor.shape:
            tensor.copy_(stored[name])
    return model


@torch.no_grad()
def _fill(model: nn.Module, base: SharedBase, role: str) -> None:
    """Copy a role's weights into a model: merged in float32, and rounded once."""
    for path, weight in dense_weights(base.lm, base.roles.adapter_of(role), base.loaded.quantizer):
        layer: Any = model.get_submodule(path)
        layer.weight.copy_(weight)


def _probes(base: SharedBase, *, ended: bool = False) -> list[Tensor]:
    """Token ids [1, T] of a few short texts and one of random tokens; with `ended`, also one with an end token."""
    rows = [base.tokenizer(text)["input_ids"] for text in PROBES]
    if ended:
        rows.append([*rows[1], base.tokenizer.eos_token_id])
    vocabulary, generator = base.vocab_size, torch.Generator().manual_seed(0)
    drawn = torch.randint(vocabulary, (1, min(64, base.max_length)), generator=generator)
    return [torch.tensor([row]) for row in rows if row] + [drawn]
