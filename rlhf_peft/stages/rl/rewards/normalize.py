"""Clipping and normalisation of one reward's scores, before its weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ....maths import group_advantages


def standardize(scores: Tensor) -> Tensor:
    """Shift and scale to mean 0 and variance 1, what abstained left out.

        z_i = (s_i - mean(s)) / std(s),  std with N in the denominator

    Scores that are all equal give 0.

    Args:
        scores: [N]; NaN abstains and stays NaN.

    Returns:
        [N].
    """
    return Moments().take(scores).apply(scores)


def per_group(scores: Tensor, group: Tensor) -> Tensor:
    """Shift and scale within each group, what abstained left out.

        z_i = (s_i - mean_group) / (std_group + 1e-4),  std with N - 1 in the denominator

    GDPO, Liu et al. 2026 (arXiv:2601.05242), as in TRL: with `scale_rewards: batch` the sum is divided by the standard
    deviation of all rows; its mean over the batch is 0, for that of each group is.

    Args:
        scores: [N]; NaN abstains and stays NaN.
        group: [N] int64.

    Returns:
        [N].
    """
    return torch.where(scores.isnan(), scores, group_advantages(scores, group, "group"))


class Moments:
    """Mean and variance of all scores so far (Chan et al. 1983, eq. 2.1: pairwise updating), in float64."""

    def __init__(self) -> None:
        self.count, self.mean, self.m2 = 0, 0.0, 0.0

    def take(self, scores: Tensor) -> Moments:
        """Count some scores in; NaN is left out.

        Args:
            scores: [N].
        """
        given = scores[~scores.isnan()].double()
        if not len(given):
            return self
        # The mean of equal numbers is that number, without a rounding error that would count as variance.
        equal = bool((given == given[0]).all())
        mean = float(given[0]) if equal else float(given.mean())
        m2 = 0.0 if equal else float((given - mean).square().sum())
        total, apart = self.count + len(given), mean - self.mean
        self.m2 += m2 + apart * apart * self.count * len(given) / total
        self.mean += apart * len(given) / total
        self.count = total
        return self

    def apply(self, scores: Tensor) -> Tensor:
        """(s - mean) / std; 0 where there is no variance.

        Args:
            scores: [N].

        Returns:
            [N].
        """
        if self.m2 <= 0:
            return torch.where(scores.isnan(), scores, torch.zeros_like(scores))
        std = (self.m2 / self.count) ** 0.5
        return ((scores.double() - self.mean) / std).to(scores.dtype)

    def state_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.count, self.mean, self.m2 = int(state["count"]), float(state["mean"]), float(state["m2"])


class RewardNormalizer:
    """The recipe's `clip` and `normalize` of one reward.

    Args:
        clip: lowest and highest score, or None.
        normalize: none, group, batch or running.
    """

    def __init__(self, clip: tuple[float, float] | None, normalize: str) -> None:
        self.clip, self.normalize = clip, normalize
        self.moments = Moments()

    def apply(self, scores: Tensor, group: Tensor) -> Tensor:
        """Clip, then normalise; running moments count this batch in first.

        Args:
            scores: [N]; NaN abstains and stays NaN.
            group: [N] int64.

        Returns:
            [N].
        """
        if self.clip is not None:
            scores = scores.clamp(*self.clip)
        if self.normalize == "group":
            return per_group(scores, group)
        if self.normalize == "batch":
            return standardize(scores)
        return self.moments.take(scores).apply(scores) if self.normalize == "running" else scores
