"""Hands a run over to the tools it is deployed with: PEFT, plain weights, vLLM, Ollama, a sequence classifier.

Merged weights are made from the base as it was trained on, dequantized, so that they say what was trained; the 4-bit
weights themselves are never merged into. How far the logits are from those of the trained stack is measured.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import atomic
from ..data.inspect import generation_config
from ..engine import POLICY, BaseSpec, ScalarHead, SharedBase
from ..engine.artifacts import ADAPTER_FILE, CONFIG_FILE, load_head, read_role
from ..engine.base_spec import DTYPES, check_safetensors, load_config, quiet
from ..engine.ends import end_ids
from ..engine.fast.dense_weights import dense_weights
from ..engine.fingerprint import FILE as BASE_FILE
from ..errors import RunFolderError, UsageError
from ..kit.quantizer import LoadCode, Quantizer
from ..recipe import Recipe, load
from ..registry import Registry, chosen_quantizer
from ..runs import History
from .exported import check_replaceable, write_record
from .files import save_model, save_tokenizer
from .model_card import card, generates, use_adapter, use_merged
from .ollama import modelfile
from .opened import ADAPTERS, Opened, open_run

Target = Literal["peft", "merged", "vllm", "ollama"]
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM takes as --max-lora-rank."""
PROBES = ("The", "Once upon a time", "Question: what is 2 + 2?\nAnswer:", "def main():\n")
CAUSAL, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"


@dataclass
class Exported:
    """What was written.

    Attributes:
        folder: where.
        use: Python that loads it.
        commands: to type next.
        difference: largest difference of a logit, or of a score, to what was trained; None: nothing was merged.
        scale: largest logit or score of what was trained, for comparison.
        offset: what a classifier's scores lack to be the reward head's; None: no reward.
    """

    folder: Path
    use: str
    commands: list[str] = field(default_factory=list)
    difference: float | None = None
    scale: float | None = None
    offset: float | None = None


def export(
    run: Path,
    target: Target,
    folder: Path,
    *,
    role: str = POLICY,
    dtype: str = "bfloat16",
    device: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    registry: Registry | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write a role of a run for another tool.

    Args:
        run: the run's folder.
        target: peft (an adapter), merged (plain weights), vllm (an adapter and the line that serves it) or ollama
            (plain weights and a Modelfile).
        folder: where to; it must be empty or absent.
        role: policy, or a reward, which becomes a sequence classifier.
        dtype: of merged weights.
        device: to measure on.
        trust_remote_code: run code from the model's repository.
        overwrite: replace the folder where an earlier export wrote it.
        registry: makes the quantizer; None: with all installed plugins.
        say: is told what happens.

    Raises:
        UsageError: the folder is not empty, or the role is not there, or cannot be exported so.
    """
    recipe = load(run / "recipe.yaml", (), plugins=None)
    registry = registry or Registry.load()
    quantizer = chosen_quantizer(recipe, registry)
    adapter = run / ADAPTERS / role
    if not (adapter / CONFIG_FILE).is_file():
        there = sorted(place.name for place in (run / ADAPTERS).glob("*") if (place / CONFIG_FILE).is_file())
        raise RunFolderError(f"{run}: has no adapter of {role}. It has {', '.join(there) or 'none yet'}.")
    if not atomic.is_empty(folder):
        if not overwrite:
            raise UsageError(
                f"{folder}: is not empty. Choose another folder with --output, or replace an earlier export with "
                "--overwrite."
            )
        check_replaceable(folder)
    if role != POLICY and target in ("vllm", "ollama"):
        raise UsageError(f"--to {target}: serves policies. A reward goes with --to peft or --to merged.")
    history = History.of(run)
    opened = None
    if target not in ("peft", "vllm"):
        opened = open_run(run, device=device, trust_remote_code=trust_remote_code, registry=registry)
        say(f"merging {role} into the dequantized base, in {dtype} ...")
    with atomic.folder(folder, replace=overwrite) as aside:
        place = Place(aside, folder)
        if opened is None:
            done = _adapter(recipe, quantizer, history, adapter, place, role, target, trust_remote_code)
        elif role == POLICY:
            done = _merged(opened, quantizer, history, place, DTYPES[dtype], target)
        else:
            done = _classifier(opened, quantizer, history, role, place, DTYPES[dtype])
        write_record(
            aside,
            run=history.name,
            role=role,
            target=target,
            dtype=None if opened is None else dtype,
            largest_difference=done.difference,
            largest_value=done.scale,
            score_offset=done.offset,
        )
    return done


@dataclass(frozen=True, slots=True)
class Place:
    """Where an export goes.

    Attributes:
        aside: the folder that is written, and renamed once everything is in it.
        folder: its name from then on, which is what texts say.
    """

    aside: Path
    folder: Path

    @property
    def name(self) -> str:
        """The final folder as texts say it."""
        return self.folder.as_posix()


# --- adapters ---


def _adapter(
    recipe: Recipe,
    quantizer: Quantizer,
    history: History,
    adapter: Path,
    place: Place,
    role: str,
    target: Target,
    trust: bool,
) -> Exported:
    location, folder = _location(recipe), place.aside
    offset = None
    if role == POLICY:
        shutil.copyfile(adapter / ADAPTER_FILE, folder / ADAPTER_FILE)
        changes: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    else:
        offset = _with_head(adapter, folder)
        changes = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    if (adapter / BASE_FILE).is_file():
        shutil.copyfile(adapter / BASE_FILE, folder / BASE_FILE)
    config = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    config |= {**changes, "base_model_name_or_path": location}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    tokenizer = save_tokenizer(recipe, folder, trust, classifier=role != POLICY)
    use = use_adapter(recipe, location, place.name, CAUSAL if role == POLICY else CLASSIFIER, quantizer)
    answers = generates(tokenizer, end_ids(tokenizer, generation_config(location))) if role == POLICY else ""
    (folder / "README.md").write_text(
        card(recipe, history, role, use + answers, quantizer, offset=offset), encoding="utf-8"
    )
    done = Exported(place.folder, use, offset=offset)
    if target == "vllm":
        code = quantizer.load_code(())
        line = _serve(recipe, location, place, history.name, int(config.get("r", 8)), code)
        done.commands = [*([code.vllm_needs] if code is not None and code.vllm_needs else []), line]
    return done


def _with_head(adapter: Path, folder: Path) -> float:
    """Write a reward's adapter with its head in it, as PEFT keeps a classifier's; returns what its scores lack."""
    weights, tensors = read_role(adapter)
    if weights is None or tensors is None:
        raise RunFolderError(f"{adapter}: has no head, so it scores nothing.")
    head = load_head(tensors["weight"].shape[1], tensors, str(adapter))
    weight, offset = _plain_head(head)
    save_file(
        {**weights, "base_model.model.score.weight": weight}, folder / ADAPTER_FILE, metadata={"format": "pt"}
    )
    return offset


@torch.no_grad()
def _plain_head(head: ScalarHead) -> tuple[Tensor, float]:
    """(w . h + b - shift) / scale as a weight [1, H] and a constant."""
    weight = (head.weight / head.scale).contiguous()
    return weight, float((head.bias - head.shift) / head.scale)


def _serve(recipe: Recipe, location: str, place: Place, name: str, rank: int, code: LoadCode | None) -> str:
    """The line that serves an adapter with vLLM, which quantizes as it loads where it can."""
    most = next((known for known in RANKS if rank <= known), rank)
    revision = f" --revision {shlex.quote(recipe.model.revision)}" if recipe.model.revision else ""
    quantized = f" {code.vllm}" if code is not None and code.vllm else ""
    template = "chat_template.jinja"
    there = (place.aside / template).is_file()
    chat = f" --chat-template {shlex.quote(f'{place.name}/{template}')}" if there else ""
    lora = (
        f"--enable-lora --max-lora-rank {most} --lora-modules {shlex.quote(name)}={shlex.quote(place.name)}"
    )
    return f"vllm serve {shlex.quote(location)}{revision}{quantized} {lora}{chat}"


def _location(recipe: Recipe) -> str:
    """What plain transformers loads the base from."""
    return BaseSpec(recipe.model.path).location


# --- whole weights ---


def _merged(
    opened: Opened,
    quantizer: Quantizer,
    history: History,
    place: Place,
    dtype: torch.dtype,
    target: Target,
) -> Exported:
    from transformers import AutoModelForCausalLM

    base, ids, folder = opened.base, _probes(opened.base), place.aside
    with torch.no_grad(), base.role(POLICY, train=False):
        trained = [base.lm(input_ids=row.to(base.device)).logits.float().cpu() for row in ids]
    model = _plain(opened, AutoModelForCausalLM, dtype)
    _fill(model, base, POLICY)
    with torch.no_grad():
        written = [model(input_ids=row).logits.float() for row in ids]
    difference = max(float((a - b).abs().max()) for a, b in zip(trained, written, strict=True))
    scale = max(float(row.abs().max()) for row in trained)
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
        made = f"ollama create {shlex.quote(name)} -f {shlex.quote(f'{place.name}/Modelfile')}"
        commands = [made, f"ollama run {shlex.quote(name)}"]
    return Exported(place.folder, use, commands, difference, scale)


def _classifier(
    opened: Opened, quantizer: Quantizer, history: History, role: str, place: Place, dtype: torch.dtype
) -> Exported:
    """A reward role as a sequence classifier of transformers; its head there has no bias: a constant is left."""
    from transformers import AutoModelForSequenceClassification

    base, ids, folder = opened.base, _probes(opened.base, ended=True), place.aside
    with torch.no_grad(), base.role(role, train=False):
        each = [
            base.forwards.rewards(
                base.forwards.hidden(row.to(base.device)), torch.tensor([row.shape[1]]), role
            )
            for row in ids
        ]
    trained = torch.cat(each).float().cpu()
    model = _plain(opened, AutoModelForSequenceClassification, dtype, num_labels=1)
    _fill(model, base, role)
    weight, offset = _plain_head(base.roles.head(role))
    model.get_submodule("score").load_state_dict({"weight": weight.to(dtype)})
    tokenizer = save_tokenizer(opened.recipe, folder, base.loaded.spec.trust_remote_code, classifier=True)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.problem_type, model.config.score_offset = "regression", offset
    with torch.no_grad():
        written = torch.cat([model(input_ids=row).logits[:, 0].float() for row in ids]) + offset
    difference = float((trained - written).abs().max())
    save_model(model, folder)
    use = use_merged(place.name, CLASSIFIER)
    text = card(opened.recipe, history, role, use, quantizer, merged=difference, offset=offset)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return Exported(place.folder, use, [], difference, float(trained.abs().max()), offset)


def _plain(opened: Opened, kind: Any, dtype: torch.dtype, **options: Any) -> Any:
    """The base without quantization, in main memory."""
    from transformers.utils import logging

    source, before = opened.base.loaded.spec, logging.get_verbosity()
    config = load_config(source)
    # That a classifier's head is new is known: it is filled next.
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
    """The base of a checkpoint that is stored quantized: what it holds as it is; `_fill` dequantizes the rest."""
    del config.quantization_config
    for key, value in options.items():
        setattr(config, key, value)
    model = kind.from_config(config, dtype=dtype, trust_remote_code=base.loaded.spec.trust_remote_code)
    held = {name.replace(".base_layer.", "."): tensor for name, tensor in base.lm.state_dict().items()}
    for name, tensor in model.state_dict().items():
        if name in held and held[name].shape == tensor.shape:
            tensor.copy_(held[name])
    return model


@torch.no_grad()
def _fill(model: nn.Module, base: SharedBase, role: str) -> None:
    """Put in the weights of a role: merged in float32, rounded once."""
    for path, weight in dense_weights(base.lm, base.roles.adapter_of(role), base.loaded.quantizer):
        place: Any = model.get_submodule(path)
        place.weight.copy_(weight)


def _probes(base: SharedBase, *, ended: bool = False) -> list[Tensor]:
    """Short texts, one of random tokens, and if asked one that has an end."""
    rows = [base.tokenizer(text)["input_ids"] for text in PROBES]
    if ended:
        rows.append([*rows[1], base.tokenizer.eos_token_id])
    vocabulary, generator = base.vocab_size, torch.Generator().manual_seed(0)
    drawn = torch.randint(vocabulary, (1, min(64, base.max_length)), generator=generator)
    return [torch.tensor([row]) for row in rows if row] + [drawn]
