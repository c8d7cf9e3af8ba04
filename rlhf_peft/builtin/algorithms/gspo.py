"""`gspo`: GRPO with one ratio for the whole completion. Zheng et al. 2025 (arXiv:2507.18071)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import Minibatch, PolicyGradient, maths

from .grpo import Group, GroupOptions


class GspoOptions(GroupOptions):
    """Options of `gspo`; clip widths are those of the paper, section 5.1: sequence ratios change less than token
    ratios.
    """

    epsilon: float = Field(
        3e-4, ge=0, le=1e6, description="The sequence's ratio is not pushed below 1 - epsilon."
    )
    epsilon_high: float | None = Field(
        4e-4, ge=0, le=1e6, description="Nor above 1 + epsilon_high; null: epsilon."
    )


class Gspo(Group):
    """Clipped terms with the ratio of the whole sequence at each of its tokens."""

    Options = GspoOptions
    metrics: ClassVar[Mapping[str, str]] = {
        **PolicyGradient.metrics,
        "policy/loss": "mean over tokens of -min(s A, clip(s) A), s = exp(mean over the row of logp - old_logp)",
    }

    def policy_terms(
        self, logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """PPO's terms with s_i = exp(1/|y| sum_t (logp - old_logp)) in place of the token's ratio, [n, T]."""
        low, high = self.clip
        ratio = maths.sequence_log_ratio(logps, old, mask)
        return maths.ppo_policy_terms(logps, old, advantages, low, high, ratio)

    def weights(self, minibatch: Minibatch) -> Tensor:
        """Weights that give the mean over rows (equation 5)."""
        return maths.token_weights(minibatch.mask, "sequence", minibatch.total_tokens, minibatch.total_rows)
