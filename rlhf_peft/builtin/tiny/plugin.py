"""Registers the tiny world's data as `tiny` and its gold judge as `tiny-gold`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from rlhf_peft.plugin import Options, Register, RewardBatch, Scores, hookimpl

from . import text


class TinyDataOptions(Options):
    """Options of `tiny`."""

    part: Literal["demonstrations", "preferences", "prompts"] = Field(description="Kind of rows.")
    questions: Literal["train", "test"] = Field(
        "train", description="Test questions occur in no training row."
    )
    size: int = Field(1000, gt=0, le=10**7, description="Rows.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Seed of the rows.")
    noise: float = Field(0.1, ge=0, le=1, description="Share of preferences whose answers are exchanged.")


class TinyData:
    """Rows of the tiny world; the same options always give the same rows."""

    Options = TinyDataOptions

    def __init__(self, options: TinyDataOptions) -> None:
        self.options = options

    def rows(self) -> Iterable[Mapping[str, Any]]:
        """Rows in TRL's conversational form."""
        o = self.options
        if o.part == "demonstrations":
            return text.demonstrations(o.size, o.seed, o.questions)
        if o.part == "preferences":
            return text.preferences(o.size, o.seed, o.noise, o.questions)
        return text.prompts(o.size, o.seed, o.questions)


class GoldOptions(Options):
    """`tiny-gold` has no options."""


class TinyGold:
    """The tiny world's judge by rules; meant to measure, not to train on."""

    Options = GoldOptions
    roles: tuple[str, ...] = ()
    timeout: float | None = None

    def __init__(self, options: GoldOptions) -> None:
        pass

    async def score(self, batch: RewardBatch) -> Scores:
        """Score each answer to its question; a truncated answer is penalised only for its open end."""
        questions = [p if isinstance(p, str) else str(p[-1]["content"]) for p in batch.prompts]
        return Scores(
            row=torch.tensor([text.gold_score(q, a) for q, a in zip(questions, batch.texts, strict=True)])
        )


@hookimpl
def rlhf_peft_register_datasets(register: Register) -> None:
    """Register the dataset."""
    register("tiny", TinyData)


@hookimpl
def rlhf_peft_register_rewards(register: Register) -> None:
    """Register the judge."""
    register("tiny-gold", TinyGold)
