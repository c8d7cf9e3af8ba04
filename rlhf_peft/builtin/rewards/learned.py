"""`learned`: the score of the reward heads on the shared base, of one head or an ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import Options, RewardBatch, RewardError, Scores


class LearnedOptions(Options):
    """Options of `learned`: how the heads of an ensemble are combined."""

    reduce: Literal["mean", "min", "mean-std"] = Field(
        "mean", description="mean; min: the worst case; mean-std: mean - k * standard deviation."
    )
    k: float = Field(1.0, ge=0, le=1e6, description="Weight of the standard deviation in mean-std.")


def reduce_heads(heads: Tensor, how: str, k: float = 1.0) -> Tensor:
    """One score from the scores of an ensemble.

    s = mean_e r_e,  min_e r_e,  or  mean_e r_e - k * std_e r_e

    Coste et al. 2023, arXiv:2310.02743, section 3 (mean, worst-case and uncertainty-weighted optimisation).

    Args:
        heads: [E, N] scores of E heads.
        how: mean, min or mean-std.
        k: weight of the standard deviation (over the ensemble, n - 1 in the denominator).

    Returns:
        [N].
    """
    if how == "min":
        return heads.min(0).values
    mean = heads.mean(0)
    if how == "mean" or len(heads) < 2:
        return mean
    return mean - k * heads.std(0)


class LearnedReward:
    """Combines the scores of the reward heads, which the stage has computed."""

    Options = LearnedOptions
    roles = ("reward",)
    timeout: float | None = None
    metrics: ClassVar[Mapping[str, str]] = {
        "<name>/mean": "mean over rows of the scores of one head of an ensemble",
        "disagreement": "mean over rows of the standard deviation over the heads of an ensemble",
    }

    def __init__(self, options: LearnedOptions) -> None:
        self.options = options

    async def score(self, batch: RewardBatch) -> Scores:
        """Combine the heads; logs their disagreement."""
        if not batch.heads:
            raise RewardError(
                "reward learned: there is no reward head. Put a reward_model stage before, or init.reward."
            )
        heads = torch.stack([batch.heads[role] for role in sorted(batch.heads)])
        metrics: dict[str, float] = {}
        extra: dict[str, list[float]] = {}
        if len(heads) > 1:
            metrics = {"disagreement": float(heads.std(0).mean())}
            metrics |= {f"{role}/mean": float(batch.heads[role].mean()) for role in sorted(batch.heads)}
            extra = {role: batch.heads[role].tolist() for role in sorted(batch.heads)}
        return Scores(
            row=reduce_heads(heads, self.options.reduce, self.options.k), metrics=metrics, extra=extra
        )
