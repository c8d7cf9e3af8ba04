"""A recipe whose stages take two steps on rows of the planned length, with a model that has no weights."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from ...data import Encoder
from ...data.inspect import model_encoder
from ...errors import UsageError
from ...recipe import PreferenceStage, Recipe, RewardModelStage, RlStage, SftStage, StageBase
from ...registry import Registry
from ..plan import Plan
from .made_up import REWARD, SAMPLER

TINY = Path(__file__).parents[2] / "assets" / "tiny"
STEPS = 2
"""Steps of a stage that reads rows: the optimizer has no state before the first."""
FORWARDS = 2
"""Micro-batches of such a step; the second one adds to the gradients of the first."""
WORDS = ("the", "old", "fox", "a", "lighthouse", "and", "at", "sea", "rain", "on", "roof", "in", "to")
"""Each of them is one token, so that every text of so many words has the same length."""


def write_model(config: PretrainedConfig, layers: int, folder: Path) -> Path:
    """A folder with the configuration of a model of so many layers, and the tokenizer of `builtin:tiny`.

    Raises:
        UsageError: the model is made by code of its own.
    """
    if getattr(config, "auto_map", None):
        raise UsageError(
            "--exact: the model is made by code of its own repository, which a dry run does not load. Leave out "
            "--exact."
        )
    model = folder / "model"
    model.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(TINY / name, model / name)
    settings = json.loads((TINY / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("model_max_length", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    shallow = copy.deepcopy(config)
    text_config = shallow.get_text_config()
    whole = text_config.num_hidden_layers
    for key, value in list(vars(text_config).items()):
        if isinstance(value, list) and len(value) == whole:  # One entry for each layer.
            setattr(text_config, key, value[:layers])
    text_config.num_hidden_layers = layers
    shallow.save_pretrained(model)
    return model


def stand_in(recipe: Recipe, plan: Plan, registry: Registry, model: Path, folder: Path) -> dict[str, Any]:
    """The recipe as a document, with stand-ins for model, rows, rewards and servers.

    Args:
        recipe: that is planned.
        plan: of it; says how long rows are, and whether weights are merged for rollouts.
        registry: knows what rewards need.
        model: folder that `write_model` made.
        folder: for the rows.
    """
    document = recipe.model_dump(mode="json", exclude_none=True)
    section = {**document["model"], "path": str(model), "chat_template_kwargs": {}}
    section.pop("revision", None)
    merges = any("dense weights" in phase.items for phase in plan.phases)
    if "merge_rollouts" not in section and any(isinstance(stage, RlStage) for stage in recipe.stages):
        section["merge_rollouts"] = merges
    encoder = model_encoder(str(model)).without_limit()
    stages = []
    for stage, text in zip(recipe.stages, document["stages"], strict=True):
        rows = folder / f"{stage.name}.jsonl"
        changed = {
            **text, "dataset": {"path": str(rows)}, "eval": {}, "checkpoint": {"every": None}, "max_steps": 1,
        }  # fmt: skip
        changed.pop("init", None)
        if isinstance(stage, RlStage):
            changed |= _of_rl(stage, plan, registry, rows)
        else:
            changed |= {"max_steps": STEPS, "batch_size": rows_of_a_step(stage, plan)}
        lines = (json.dumps(row) + "\n" for row in _rows(stage, plan, encoder))
        rows.write_text("".join(lines), encoding="utf-8")
        stages.append(changed)
    # What a run would write stays in this folder.
    return {
        **document, "model": section, "stages": stages, "device": "cuda", "output_dir": str(folder), "tracking": [],
        "plugins": [],
    }  # fmt: skip


def rows_of_a_step(stage: SftStage | PreferenceStage | RewardModelStage, plan: Plan) -> int:
    """Rows of a step: fewer than in the recipe, for the micro-batches of a step are all alike."""
    return min(stage.batch_size, FORWARDS * plan.forward_rows[stage.name])


def _of_rl(stage: RlStage, plan: Plan, registry: Registry, rows: Path) -> dict[str, Any]:
    """Keys of an RL stage that differ: rewards without a role are left out, and servers answer at once."""
    kept = [
        reward.model_dump(mode="json", exclude_none=True)
        for reward in stage.rewards
        if getattr(registry.entry("rewards", reward.name).factory, "roles", ())
    ]
    changed: dict[str, Any] = {"rewards": [*kept, {"name": REWARD}]}
    if stage.sampler.name == "vllm_server":
        sampler = registry.make("samplers", stage.sampler.name, stage.sampler.options)
        changed["sampler"] = {"name": SAMPLER, "max_new_tokens": sampler.params.max_new_tokens}
    prompts = plan.evaluation_prompts.get(stage.name)
    if prompts:
        changed["eval"] = {"dataset": {"path": str(rows)}, "size": prompts}
    return changed


def _rows(stage: StageBase, plan: Plan, encoder: Encoder) -> Iterator[dict[str, str]]:
    """As many rows as a step takes, each of so many tokens as the plan says."""
    tokens = plan.lengths[stage.name]
    if isinstance(stage, RlStage):
        words = _words(tokens, lambda n: len(encoder.prompt({"prompt": text(n, 0)})))
        yield from ({"prompt": text(words, i)} for i in range(max(stage.prompts_per_step, 2)))
        return
    assert isinstance(stage, SftStage | PreferenceStage | RewardModelStage)
    asked = max(1, tokens // 2)
    prompt = _words(asked, lambda n: len(encoder.prompt({"prompt": text(n, 0)})))

    def length(words: int) -> int:
        row = {"prompt": text(prompt, 0), "completion": text(words, 0)}
        return len(encoder.completion(row))

    words = _words(tokens, length)
    for i in range(max(rows_of_a_step(stage, plan), 2)):
        row = {"prompt": text(prompt, i)}
        if isinstance(stage, SftStage):
            yield {**row, "completion": text(words, i)}
        else:
            yield {**row, "chosen": text(words, i), "rejected": text(words, i + 1)}


def text(words: int, number: int) -> str:
    """So many words; another number gives another text: its digits are the first words but one."""
    count, digits = len(WORDS), []
    while number:
        number, digit = divmod(number, count)
        digits.append(WORDS[digit])
    return " ".join([WORDS[0], *digits, *(WORDS[i % count] for i in range(words))][:words])


def _words(tokens: int, length: Any) -> int:
    """The number of words whose text is as long as wanted, or a little shorter; at least one."""
    low, high = 1, max(2, 2 * tokens)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if length(middle) <= tokens else (low, middle)
    return low
