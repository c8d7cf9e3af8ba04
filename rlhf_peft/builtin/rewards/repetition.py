"""`repetition`: a penalty for repeated n-grams of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from rlhf_peft.plugin import Options, RewardBatch, Scores


class RepetitionOptions(Options):
    """Options of `repetition`."""

    n: int = Field(3, gt=0, le=2**12, description="Tokens of an n-gram.")
    penalty: float = Field(
        1.0, ge=0, le=1e6, description="Subtracted where (nearly) all n-grams are repeats."
    )


def repeated(ids: Sequence[int], n: int) -> float:
    """Share of the n-grams that are repetitions.

    1 - different / all;  0 if there are no n-grams

    Yeo et al. 2025, arXiv:2502.03373, appendix C.2.

    Args:
        ids: token ids.
        n: length of an n-gram.
    """
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class RepetitionReward:
    """Scores repetition, from 0 (none) down to -penalty."""

    Options = RepetitionOptions
    roles: tuple[str, ...] = ()
    timeout: float | None = None

    def __init__(self, options: RepetitionOptions) -> None:
        self.options = options

    async def score(self, batch: RewardBatch) -> Scores:
        """One score for each completion."""
        share = torch.tensor([repeated(ids, self.options.n) for ids in batch.completion_ids])
        return Scores(row=-self.options.penalty * share)
