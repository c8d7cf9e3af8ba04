"""Advice on a dataset: how to map its columns, which method suits it, and the commands to paste."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .columns import as_yaml, suggest, whole_prompt
from .formats import Method, mappable
from .load import Columns
from .rows import columns_of

if TYPE_CHECKING:
    from .inspect import Inspection

FEW_PAIRS = 1000
"""Number of pairs below which DPO is advised instead of a reward model."""
BIASED = 0.65
"""Share of pairs with the longer answer chosen from which on a reward model would learn length."""
HELD_OUT = 0.05
"""Fraction of the rows that the proposed commands hold out for evaluation."""
FEW_WORDS = 8
"""Answers with more words than this show the steps of the solution."""
CHECKABLE = ("answer", "solution", "final_answer", "target", "ground_truth")
NUMBER = re.compile(r"(?:####\s*)?[-+$]?[\d,]*\.?\d+%?\s*\.?")


@dataclass(frozen=True, slots=True)
class Checkable:
    """A column of answers that a program can check.

    Attributes:
        column: name of the column.
        worked: whether the answers show their steps, so that they can be imitated.
    """

    column: str
    worked: bool


def checkable_column(rows: Any) -> Checkable | None:
    """Find a column whose values end in a number; None if there is none."""
    for name in (name for name in CHECKABLE if name in columns_of(rows)):
        values = [
            str(value).strip() for value in rows[:200][name] if value is not None and str(value).strip()
        ]
        ends = [value.splitlines()[-1].strip() for value in values]
        if ends and sum(bool(NUMBER.fullmatch(end)) for end in ends) > 0.8 * len(ends):
            words = sorted(len(value.split()) for value in values)
            return Checkable(name, words[len(words) // 2] > FEW_WORDS)
    return None


def advice(
    inspection: Inspection, checkable: Checkable | None = None, columns: Columns | None = None
) -> list[str]:
    """Methods that suit a dataset, with the commands to paste.

    Args:
        inspection: the inspected dataset; it has a format.
        checkable: a column of answers that a program can check.
        columns: how the dataset's columns are renamed.
    """
    assert inspection.format is not None
    kind = inspection.format.kind
    lines: list[str] = []

    def rows(stage: str, mapping: Columns) -> list[str]:
        dataset: dict[str, Any] = {**inspection.location, "eval_fraction": HELD_OUT}
        dataset |= {"columns": dict(mapping)} if mapping else {}
        dataset |= {"on_bad_row": "skip"} if inspection.bad else {}
        # The recipe's own split and held-out rows are another dataset's.
        model = [] if inspection.model is None else [f"model.path={inspection.model}"]
        return [*model, f"stages.{stage}.dataset={json.dumps(dataset)}", f"stages.{stage}.eval={{every: 50}}"]

    def recommend(reason: str, recipe: str, overrides: Sequence[str]) -> None:
        lines.append(reason)
        lines.append(f"  rlhf-peft recipes copy {recipe} my.yaml {' '.join(map(shlex.quote, overrides))}")

    if inspection.longer_chosen is not None and inspection.longer_chosen >= BIASED:
        lines.append(
            f"chosen is longer in {inspection.longer_chosen:.0%} of pairs: a reward model will learn length. Balance "
            "the pairs, or add the reward `length` with a target and watch completions/mean_length."
        )
    renamed = columns or {}
    if checkable is not None:
        overrides = [*rows("rl", renamed), f"stages.rl.rewards.numeric_answer.column={checkable.column}"]
        if checkable.worked:
            overrides += rows("sft", {**renamed, "completion": checkable.column})
        recommend(
            f"column {checkable.column} holds numbers that can be checked: GRPO.", "grpo-gsm8k", overrides
        )
    if kind == "preference" and inspection.usable < FEW_PAIRS:
        pairs = "pair is" if inspection.usable == 1 else "pairs are"
        few = f"{inspection.usable:,} {pairs} few for a reward model: DPO, straight into the policy."
        recommend(few, "dpo", rows("preference", renamed))
    elif kind == "preference":
        enough = f"{inspection.usable:,} pairs are enough for a reward model, and PPO on it."
        recommend(enough, "reward-model", rows("reward_model", renamed))
    elif kind == "unpaired_preference":
        recommend("answers with a label each: KTO.", "kto", rows("preference", renamed))
    elif checkable is None and kind == "prompt_only":
        alone = "prompts alone: RL, with a reward model or a reward of yours (--reward F.py:FUNCTION)."
        recommend(alone, "ppo", rows("rl", renamed))
    elif checkable is None:
        recommend("demonstrations: supervised fine-tuning.", "sft", rows("sft", renamed))
    return lines


def mapping_hint(inspection: Inspection, checkable: Checkable | None) -> list[str]:
    """How to map columns that make no known format, and inspect again.

    Where answers can be checked, their column keeps its name.
    """
    methods: tuple[Method, ...] = ("reward_model", "sft", "rl") if checkable is None else ("rl",)
    mapping, exact = suggest(
        inspection.columns, [columns for method in methods for columns in mappable(method)]
    )
    whole = whole_prompt(mapping, inspection.columns)
    used = [name for value in whole.values() for name in ([value] if isinstance(value, str) else value)]
    rest = [name for name in inspection.columns if name not in used]
    again = [inspection.source, *(["--name", inspection.name] if inspection.name else [])]
    again += ["--split", inspection.split] if inspection.split != "train" else []
    lead = "Map the columns" if exact else "Map the columns, with your own names"
    unread = f"not read then: {', '.join(rest)}. Several columns may be joined: {{prompt: [first, second]}}"
    return [
        f"these columns make none of the formats that TRL knows. {lead}, here and as dataset.columns in a recipe:",
        f"  {shlex.join(['rlhf-peft', 'data', *again, '--columns', as_yaml(whole)])}",
        *([unread] if rest else []),
    ]
