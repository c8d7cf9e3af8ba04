"""The model card of what is exported: what it is, from what, with which figures, how it is used, and what it is for."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from ..engine import POLICY
from ..recipe import Recipe
from ..runs import History

SHOWN = re.compile(
    r"loss|reward|kl|accuracy|eval_loss|eval/(reward|kl|accuracy|margin|ece|rewards/.*/mean)|(eval_)?rewards/accuracies"
)
"""Figures that a card tells."""


FOUR_BITS = ("nf4", "fp4")
"""Values of `model.quantization` whose layers are bitsandbytes' `Linear4bit`."""

_ALIKE = (
    "for module in base.modules():  # bitsandbytes: the same numbers on every CPU",
    '    if hasattr(module, "support_avx512bf16_for_cpu"):',
    "        module.support_avx512bf16_for_cpu = False",
)


def is_here(path: str) -> bool:
    """Whether a model's path is one of this machine or of this package, which means nothing on the hub."""
    return path.startswith("builtin:") or Path(path).expanduser().exists()


def card(
    recipe: Recipe,
    history: History,
    role: str,
    use: str,
    *,
    merged: float | None = None,
    offset: float | None = None,
) -> str:
    """A model card in Markdown, with the header that the hub reads.

    Args:
        recipe: of the run.
        history: of the run.
        role: that is exported.
        use: Python that loads it.
        merged: largest difference to what was trained; None: it is an adapter.
        offset: what a classifier's scores lack; None: it is none.
    """
    policy = role == POLICY
    header = {
        **({} if is_here(recipe.model.path) else {"base_model": recipe.model.path}),
        "library_name": "peft" if merged is None else "transformers",
        "pipeline_tag": "text-generation" if policy else "text-classification",
        "tags": ["rlhf", "lora", "rlhf-peft", *([] if policy else ["reward-model"])],
    }
    finished = set(history.manifest.get("stages_done", []))
    kinds = {name: kind for name, kind in history.kinds.items() if name in finished}
    names = ", ".join(f"{name} ({kind})" if name != kind else kind for name, kind in kinds.items())
    left = " and ".join(name for name in history.kinds if name not in finished)
    what = "A policy" if policy else "A reward model"
    data = dict.fromkeys(
        str(stage.dataset.path or stage.dataset.name) for stage in recipe.stages if stage.name in finished
    )
    figures = [
        f"| {stage} | {key} | {value:.4g} |"
        for stage in kinds
        for key, value in sorted(history.last(stage).items())
        if SHOWN.fullmatch(key)
    ]
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {history.name}: {role}",
        "",
        f"{what} aligned with human feedback on {recipe.model.path} by rlhf-peft, in the stages {names}.",
        "",
        *([f"**{left} is not finished**; this is what the stages before have trained.", ""] if left else []),
        "## Use",
        "",
        "```python",
        use,
        "```",
        "",
        *_notes(recipe, merged, offset),
        "## Data",
        "",
        *(f"- {name}" for name in data),
        "",
        "## Figures",
        "",
        "| stage | figure | last value |",
        "|---|---|---|",
        *figures,
        "",
        "## Intended use",
        "",
        "For text similar to its training data. Rewards measure what they were taught, not truth or safety: look at "
        "answers to your own prompts before you rely on it.",
        "",
        "## Recipe",
        "",
        "```yaml",
        (history.path / "recipe.yaml").read_text(encoding="utf-8").rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _notes(recipe: Recipe, merged: float | None, offset: float | None) -> list[str]:
    how = recipe.model.quantization
    notes = []
    if merged is not None:
        notes.append(
            f"Merged into the base as it was trained on ({how}, dequantized). On short probes the largest difference "
            f"to what was trained is {merged:.3g}."
        )
    elif how != "none":
        notes.append(f"Trained on the base in {how}; on another precision of it the answers differ a little.")
    if merged is None and how in FOUR_BITS:
        notes.append(
            "On a CPU with AVX512-BF16 bitsandbytes computes 4-bit layers in bfloat16: logits come out some 0.05 off, "
            'or it stops with "N must be divisible by block_n". The loop over `base.modules()` above switches that '
            "off; on a GPU, and on other CPUs, it changes nothing."
        )
    if offset is not None:
        where = "" if merged is None else " (`score_offset` in config.json)"
        notes.append(
            "Scores are the reward head's less a constant, because the classifiers of transformers have no bias: add "
            f"{offset:.6g}{where}."
        )
    return [line for note in notes for line in (note, "")]


def generates(tokenizer: Any, ends: Collection[int]) -> str:
    """Python that lets a loaded policy answer.

    Args:
        tokenizer: as it was exported.
        ends: ids that end an answer.
    """
    if tokenizer.chat_template:
        given = [
            'messages = [{"role": "user", "content": "Tell me about a fox."}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ").to(model.device)",
        ]
    else:
        given = ['inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)']
    return "\n".join(
        [
            "",
            *given,
            f"answer = model.generate(**inputs, max_new_tokens=64, do_sample=True, eos_token_id={sorted(ends)})",
            'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )


def use_merged(folder: str, kind: str) -> str:
    """Python that loads merged weights.

    Args:
        folder: where they are.
        kind: transformers' class.
    """
    return "\n".join(
        [
            f"from transformers import {kind}, AutoTokenizer",
            "",
            f'model = {kind}.from_pretrained("{folder}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
        ]
    )


def use_adapter(recipe: Recipe, location: str, folder: str, kind: str) -> str:
    """Python that puts an adapter onto its base, quantized as it was trained on."""
    model = recipe.model
    options: dict[str, Any] = {}
    if model.quantization in FOUR_BITS:
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": model.quantization}
        options["bnb_4bit_use_double_quant"] = model.double_quantization
    elif model.quantization == "int8":
        options = {"load_in_8bit": True}
    classifier = kind != "AutoModelForCausalLM"
    if options and classifier:
        options["llm_int8_skip_modules"] = ["score"]
    given = [f'"{location}"']
    if model.revision:
        given.append(f'revision="{model.revision}"')
    if options:
        given.append(
            f"quantization_config=BitsAndBytesConfig({', '.join(f'{k}={v!r}' for k, v in options.items())})"
        )
    if classifier:
        given.append("num_labels=1")
    needs = [kind, "AutoTokenizer", *(["BitsAndBytesConfig"] if options else [])]
    return "\n".join(
        [
            "from peft import PeftModel",
            f"from transformers import {', '.join(sorted(needs))}",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
            f"base = {kind}.from_pretrained({', '.join(given)})",
            *(["base.config.pad_token_id = tokenizer.pad_token_id"] if classifier else []),
            *(_ALIKE if model.quantization in FOUR_BITS else []),
            f'model = PeftModel.from_pretrained(base, "{folder}")',
        ]
    )
