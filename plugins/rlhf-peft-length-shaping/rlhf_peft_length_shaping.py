"""`length-shaping`: rewards completions of the right length and form; meant to stand beside a reward for content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from rlhf_peft.plugin import Options, Register, RewardBatch, Scores, hookimpl

HOOK_API = 1


class LengthShapingOptions(Options):
    """The length that is wanted, and patterns that should and should not occur."""

    target: int = Field(100, gt=0, description="Tokens wanted, EOS included.")
    tolerance: int = Field(20, ge=0, description="Tokens off the target that cost nothing.")
    length_weight: float = Field(1.0, ge=0, description="Weight of the length.")
    required: list[str] = Field(default_factory=list, description="Regular expressions that should be found.")
    forbidden: list[str] = Field(
        default_factory=list, description="Regular expressions that should not be found."
    )
    format_weight: float = Field(1.0, ge=0, description="Weight of the patterns.")

    @field_validator("required", "forbidden")
    @classmethod
    def _compiles(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns


def length_score(lengths: Tensor, target: int, tolerance: int) -> Tensor:
    """How far lengths are from a target.

    s(n) = -min(1, max(0, |n - target| - tolerance) / target)

    Args:
        lengths: [N] tokens.
        target: tokens wanted.
        tolerance: tokens off that cost nothing.

    Returns:
        [N] float32 in [-1, 0].
    """
    off = ((lengths - target).abs() - tolerance).clamp(min=0).float()
    return -(off / target).clamp(max=1.0)


class LengthShaping:
    """r = length_weight * s(n) + format_weight * (share of required found - share of forbidden found)."""

    Options = LengthShapingOptions
    metrics: ClassVar[Mapping[str, str]] = {
        "length_ok": "share of completions whose length costs nothing",
        "form_ok": "share of completions with all required patterns and no forbidden one",
    }
    roles: tuple[str, ...] = ()
    timeout: float | None = None

    def __init__(self, options: LengthShapingOptions) -> None:
        self.options = options
        self._required = [re.compile(p, re.DOTALL) for p in options.required]
        self._forbidden = [re.compile(p, re.DOTALL) for p in options.forbidden]

    async def score(self, batch: RewardBatch) -> Scores:
        """One number a completion; logs the share of good lengths and of clean forms."""
        lengths = torch.tensor([len(ids) for ids in batch.completion_ids])
        length = length_score(lengths, self.options.target, self.options.tolerance)
        form = torch.tensor([self._form(text) for text in batch.texts], dtype=torch.float32)
        best = 1.0 if self._required else 0.0
        metrics = {
            "length_ok": float((length == 0).float().mean()),
            "form_ok": float((form == best).float().mean()),
        }
        row = self.options.length_weight * length + self.options.format_weight * form
        return Scores(row=row, metrics=metrics)

    def _form(self, text: str) -> float:
        return _share(self._required, text) - _share(self._forbidden, text)


def _share(patterns: list[re.Pattern[str]], text: str) -> float:
    return sum(p.search(text) is not None for p in patterns) / len(patterns) if patterns else 0.0


@hookimpl
def rlhf_peft_register_rewards(register: Register) -> None:
    """Offer the reward."""
    register("length-shaping", LengthShaping)
