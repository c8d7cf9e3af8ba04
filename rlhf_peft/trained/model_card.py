"""The model card of what is exported: what it is, from what, with which figures, how it is used, and what it is for."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from ..engine import POLICY
from ..kit.quantizer import Quantizer
from ..recipe import Recipe
from ..runs import History
from ..runs.headlines import on_card


def is_here(path: str) -> bool:
    """Whether a model's path is one of this machine or of this package, which means nothing on the hub."""
    return path.startswith("builtin:") or Path(path).expanduser().exists()


def card(
    recipe: Recipe,
    history: History,
    role: str,
    use: str,
    quantizer: Quantizer,
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
        quantizer: of the recipe.
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
        for key, value in sorted(on_card(history.last(stage)).items())
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
        *_notes(recipe, quantizer, merged, offset),
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


def _notes(recipe: Recipe, quantizer: Quantizer, merged: float | None, offset: float | None) -> list[str]:
    how, code = recipe.model.quantization.name, quantizer.load_code(())
    notes = []
    if merged is not None:
        notes.append(
            f"Merged into the base as it was trained on ({how}, dequantized). On short probes the largest difference "
            f"to what was trained is {merged:.3g}."
        )
    elif quantizer.bits is not None:
        notes.append(f"Trained on the base in {how}; on another precision of it the answers differ a little.")
    if merged is None and code is not None and code.note:
        notes.append(code.note)
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


def use_adapter(recipe: Recipe, location: str, folder: str, kind: str, quantizer: Quantizer) -> str:
    """Python that puts an adapter onto its base, quantized as it was trained on.

    Args:
        recipe: of the run.
        location: hub id or folder of the base.
        folder: of the adapter.
        kind: transformers' class.
        quantizer: of the recipe.
    """
    classifier = kind != "AutoModelForCausalLM"
    code = quantizer.load_code(["score"] if classifier else [])
    given = [f'"{location}"']
    if recipe.model.revision:
        given.append(f'revision="{recipe.model.revision}"')
    if code is not None:
        given.append(f"quantization_config={code.config}")
    if classifier:
        given.append("num_labels=1")
    needs = {"peft": {"PeftModel"}, "transformers": {kind, "AutoTokenizer"}}
    for module, names in ({} if code is None else code.imports).items():
        needs.setdefault(module, set()).update(names)
    return "\n".join(
        [
            *(f"from {module} import {', '.join(sorted(needs[module]))}" for module in sorted(needs)),
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
            f"base = {kind}.from_pretrained({', '.join(given)})",
            *(["base.config.pad_token_id = tokenizer.pad_token_id"] if classifier else []),
            *(() if code is None else code.after),
            f'model = PeftModel.from_pretrained(base, "{folder}")',
        ]
    )
