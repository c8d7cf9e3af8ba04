"""`exact_match`: 1 if the completion is the dataset's answer, else 0."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field

from rlhf_peft.plugin import Options, RewardBatch, RewardError, Scores

from . import checks


class ExactMatchOptions(Options):
    """Options of `exact_match`: which texts are compared, and which differences are ignored."""

    column: str | None = Field(
        None,
        description="Column with the right answer, or a list of them; null: `answer`, else `solution`.",
    )
    part: Literal["whole", "last_line", "final"] = Field(
        "whole",
        description="Of the completion: all of it; its last line; or what stands in \\boxed{} or behind ####.",
    )
    ignore_case: bool = Field(True, description="Upper and lower case are the same.")
    ignore_space: bool = Field(True, description="Runs of space count as one, and none at the ends.")


class ExactMatch:
    """Compares completions with the right answers as texts."""

    Options = ExactMatchOptions
    roles: tuple[str, ...] = ()
    timeout: float | None = None

    def __init__(self, options: ExactMatchOptions) -> None:
        self.options = options

    async def score(self, batch: RewardBatch) -> Scores:
        """1 or 0 for each completion.

        Raises:
            RewardError: the dataset has no such column.
        """
        try:
            gold = checks.gold_of(batch.columns, self.options.column)
        except LookupError as error:
            raise RewardError(f"reward exact_match: {error.args[0]}") from None
        same = [
            self._part(text) in self._accepted(gold_answer)
            for text, gold_answer in zip(batch.texts, gold, strict=True)
        ]
        return Scores(row=torch.tensor(same, dtype=torch.float32))

    def _accepted(self, gold: Any) -> set[str | None]:
        """The accepted answers; a `final` one may be at the end of a worked solution."""
        answers = gold if isinstance(gold, (list, tuple)) else [gold]
        final = self.options.part == "final"
        return {
            self._normal((checks.final_answer(str(one)) if final else None) or str(one)) for one in answers
        }

    def _part(self, text: str) -> str | None:
        """The part of a completion that is compared."""
        if self.options.part == "final":
            final = checks.final_answer(text)
            return None if final is None else self._normal(final)
        lines = text.strip().splitlines()
        return self._normal(lines[-1] if self.options.part == "last_line" and lines else text)

    def _normal(self, text: str) -> str:
        """A text without the differences that are ignored."""
        text = text.casefold() if self.options.ignore_case else text
        return " ".join(text.split()) if self.options.ignore_space else text
