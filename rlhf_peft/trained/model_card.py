"""The model card of an export: what it is, how it is loaded, its data, its metrics and its recipe."""

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
    """Whether a model's path is on this machine or in this package, and so is no id of the hub."""
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
        use: Python code that loads it.
        quantizer: of the recipe.
        merged: largest difference between outputs of the trained and the exported model; None: it is an adapter.
        offset: constant missing in a classifier's scores; None: it is no classifier.
    """
    finished = set(history.manifest.get("stages_done", []))
    data = dict.fromkeys(
        str(stage.dataset.path or stage.dataset.name) for stage in recipe.stages if stage.name in finished
    )
    lines = [
        "---",
        yaml.safe_dump(_header(recipe, role, merged is not None), sort_keys=False).rstrip(),
        "---",
        "",
        f"# {history.name}: {role}",
        "",
        *_summary(recipe, history, role, finished),
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
        "## Metrics",
        "",
        "| stage | metric | last value |",
        "|---|---|---|",
        *_metric_rows(history, finished),
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


def _header(recipe: Recipe, role: str, merged: bool) -> dict[str, Any]:
    """The metadata at the head of the card, which the hub reads."""
    policy = role == POLICY
    return {
        **({} if is_here(recipe.model.path) else {"base_model": recipe.model.path}),
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-generation" if policy else "text-classification",
        "tags": ["rlhf", "lora", "rlhf-peft", *([] if policy else ["reward-model"])],
    }


def _summary(recipe: Recipe, history: History, role: str, finished: Collection[str]) -> list[str]:
    """The first lines of the card: what the model is, its finished stages, and which stages are not finished."""
    what = "A policy" if role == POLICY else "A reward model"
    kinds = {name: kind for name, kind in history.kinds.items() if name in finished}
    names = ", ".join(f"{name} ({kind})" if name != kind else kind for name, kind in kinds.items())
    unfinished = " and ".join(name for name in history.kinds if name not in finished)
    lines = [
        f"{what} aligned with human feedback on {recipe.model.path} by rlhf-peft, in the stages {names}.",
        "",
    ]
    if unfinished:
        lines += [f"**{unfinished} is not finished**; this is what the stages before have trained.", ""]
    return lines


def _metric_rows(history: History, finished: Collection[str]) -> list[str]:
    """Rows of the table of metrics: the last values of each finished stage."""
    return [
        f"| {stage} | {key} | {value:.4g} |"
        for stage in history.kinds
        if stage in finished
        for key, value in sorted(on_card(history.last(stage)).items())
    ]


def _notes(recipe: Recipe, quantizer: Quantizer, merged: float | None, offset: float | None) -> list[str]:
    """Lines on precision and offsets that a user of the export should know."""
    precision, code = recipe.model.quantization.name, quantizer.load_code(())
    notes = []
    if merged is not None:
        notes.append(
            f"Merged into the base as it was trained on ({precision}, dequantized). On short probes the largest "
            f"difference to what was trained is {merged:.3g}."
        )
    elif quantizer.bits is not None:
        notes.append(
            f"Trained on the base in {precision}; on another precision of it the answers differ a little."
        )
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
    """Python code that samples an answer from a loaded policy.

    Args:
        tokenizer: as it was exported.
        ends: token ids that end an answer.
    """
    if tokenizer.chat_template:
        inputs = [
            'messages = [{"role": "user", "content": "Tell me about a fox."}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ").to(model.device)",
        ]
    else:
        inputs = ['inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)']
    return "\n".join(
        [
            "",
            *inputs,
            f"answer = model.generate(**inputs, max_new_tokens=64, do_sample=True, eos_token_id={sorted(ends)})",
            'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )


def use_merged(folder: str, kind: str) -> str:
    """Python code that loads merged weights.

    Args:
        folder: of the weights.
        kind: name of the class in transformers.
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
    """Python code that loads an adapter onto its base, quantized as in training.

    Args:
        recipe: of the run.
        location: hub id or folder of the base.
        folder: of the adapter.
        kind: name of the base's class in transformers.
        quantizer: of the recipe.
    """
    classifier = kind != "AutoModelForCausalLM"
    code = quantizer.load_code(["score"] if classifier else [])
    arguments = [f'"{location}"']
    if recipe.model.revision:
        arguments.append(f'revision="{recipe.model.revision}"')
    if code is not None:
        arguments.append(f"quantization_config={code.config}")
    if classifier:
        arguments.append("num_labels=1")
    needs = {"peft": {"PeftModel"}, "transformers": {kind, "AutoTokenizer"}}
    for module, names in ({} if code is None else code.imports).items():
        needs.setdefault(module, set()).update(names)
    return "\n".join(
        [
            *(f"from {module} import {', '.join(sorted(needs[module]))}" for module in sorted(needs)),
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
            f"base = {kind}.from_pretrained({', '.join(arguments)})",
            *(["base.config.pad_token_id = tokenizer.pad_token_id"] if classifier else []),
            *(() if code is None else code.after),
            f'model = PeftModel.from_pretrained(base, "{folder}")',
        ]
    )
