"""What to do with a dataset: how to map its columns, which method suits it, and the commands to paste."""

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
"""Pairs below which a reward model is not worth its while, and preferences go straight into the policy."""
BIASED = 0.65
"""Share of pairs with the longer answer chosen from which a reward model will learn length."""
HELD_OUT = 0.05
"""Part of the rows that the commands hold out for evaluation."""
FEW_WORDS = 8
"""Answers of more words are worked."""
CHECKABLE = ("answer", "solution", "final_answer", "target", "ground_truth")
NUMBER = re.compile(r"(?:####\s*)?[-+$]?[\d,]*\.?\d+%?\s*\.?")


@dataclass(frozen=True, slots=True)
class Checkable:
    """A column of answers that a program can check.

    Attributes:
        column: its name.
        worked: the answers show their steps, so that there is something to imitate.
    """

    column: str
    worked: bool


def checkable_column(rows: Any) -> Checkable | None:
    """A column whose values end in a number."""
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
    found: Inspection, checkable: Checkable | None = None, columns: Columns | None = None
) -> list[str]:
    """What suits a dataset, with the commands to paste.

    Args:
        found: what is known of it; it has a format.
        checkable: a column of answers that a program can check.
        columns: as the dataset's are renamed.
    """
    assert found.format is not None
    kind = found.format.kind
    said: list[str] = []

    def rows(stage: str, mapping: Columns) -> list[str]:
        dataset: dict[str, Any] = {**found.place, "eval_fraction": HELD_OUT}
        dataset |= {"columns": dict(mapping)} if mapping else {}
        dataset |= {"on_bad_row": "skip"} if found.bad else {}
        # The recipe's own split and held-out rows are another dataset's.
        model = [] if found.model is None else [f"model.path={found.model}"]
        return [*model, f"stages.{stage}.dataset={json.dumps(dataset)}", f"stages.{stage}.eval={{every: 50}}"]

    def suits(words: str, recipe: str, overrides: Sequence[str]) -> None:
        said.append(words)
        said.append(f"  rlhf-peft recipes copy {recipe} my.yaml {' '.join(map(shlex.quote, overrides))}")

    if found.longer_chosen is not None and found.longer_chosen >= BIASED:
        said.append(
            f"chosen is longer in {found.longer_chosen:.0%} of pairs: a reward model will learn length. Balance the "
            "pairs, or add the reward `length` with a target and watch completions/mean_length."
        )
    given = columns or {}
    if checkable is not None:
        overrides = [*rows("rl", given), f"stages.rl.rewards.numeric_answer.column={checkable.column}"]
        if checkable.worked:
            overrides += rows("sft", {**given, "completion": checkable.column})
        suits(f"column {checkable.column} holds numbers that can be checked: GRPO.", "grpo-gsm8k", overrides)
    if kind == "preference" and found.usable < FEW_PAIRS:
        pairs = "pair is" if found.usable == 1 else "pairs are"
        few = f"{found.usable:,} {pairs} few for a reward model: DPO, straight into the policy."
        suits(few, "dpo", rows("preference", given))
    elif kind == "preference":
        enough = f"{found.usable:,} pairs are enough for a reward model, and PPO on it."
        suits(enough, "reward-model", rows("reward_model", given))
    elif kind == "unpaired_preference":
        suits("answers with a label each: KTO.", "kto", rows("preference", given))
    elif checkable is None and kind == "prompt_only":
        alone = "prompts alone: RL, with a reward model or a reward of yours (--reward F.py:FUNCTION)."
        suits(alone, "ppo", rows("rl", given))
    elif checkable is None:
        suits("demonstrations: supervised fine-tuning.", "sft", rows("sft", given))
    return said


def mapping_hint(found: Inspection, checkable: Checkable | None) -> list[str]:
    """How to map columns that are none of ours, and look again; answers that can be checked stay what they are."""
    methods: tuple[Method, ...] = ("reward_model", "sft", "rl") if checkable is None else ("rl",)
    mapping, exact = suggest(found.columns, [columns for method in methods for columns in mappable(method)])
    whole = whole_prompt(mapping, found.columns)
    taken = [name for value in whole.values() for name in ([value] if isinstance(value, str) else value)]
    rest = [name for name in found.columns if name not in taken]
    again = [found.source, *(["--name", found.name] if found.name else [])]
    again += ["--split", found.split] if found.split != "train" else []
    lead = "Map the columns" if exact else "Map the columns, with your own names"
    unread = f"not read then: {', '.join(rest)}. Several columns may be joined: {{prompt: [first, second]}}"
    return [
        f"these columns make none of the formats that TRL knows. {lead}, here and as dataset.columns in a recipe:",
        f"  {shlex.join(['rlhf-peft', 'data', *again, '--columns', as_yaml(whole)])}",
        *([unread] if rest else []),
    ]
