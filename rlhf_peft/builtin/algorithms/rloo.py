"""`rloo`: REINFORCE with the mean of the prompt's other completions as baseline.

Ahmadian et al. 2024 (arXiv:2402.14740); the clipped ratio of whole completions as in TRL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import Batch, Minibatch, PolicyGradient, PolicyOptions, maths


class RlooOptions(PolicyOptions):
    """Defaults are TRL's; the KL is part of a completion's reward."""

    num_generations: int = Field(2, gt=1, le=2**12, description="Completions of each prompt.")
    beta: float = Field(0.05, ge=0, le=1e6, description="KL coefficient; 0: no reference is needed.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="Per-token estimator of the KL.")
    kl_placement: Literal["reward", "loss"] = Field("reward", description="Where the KL is subtracted.")
    normalize_advantages: bool = Field(
        False, description="Advantages get mean 0 and variance 1 over the batch."
    )


class Rloo(PolicyGradient):
    """Clipped terms of the whole completion's ratio on leave-one-out advantages."""

    Options = RlooOptions
    metrics: ClassVar[Mapping[str, str]] = {
        **PolicyGradient.metrics,
        "policy/loss": "mean over tokens of -min(r A, clip(r) A), r = exp(sum over the row of logp - old_logp)",
    }

    def advantages(self, batch: Batch, scores: Tensor) -> Tensor:
        """[N] the reward, KL included, less the mean of the others' in the group."""
        rewards = self.row_rewards(batch, scores)
        found = maths.leave_one_out(rewards, batch.rollout.group)
        if not self.options.normalize_advantages:
            return found
        there = ~rewards.isnan()
        spread = found[there].std() if int(there.sum()) > 1 else found.new_zeros(())
        return ((found - found[there].mean()) / (spread + 1e-4)).where(there, found)

    def policy_terms(
        self, logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """PPO's terms, with the ratio of the whole completion at each of its tokens."""
        low, high = self.clip
        ratio = maths.masked_sum(logps - old, mask, dim=-1).unsqueeze(-1)
        return maths.ppo_policy_terms(logps, old, advantages, low, high, ratio)

    def weights(self, minibatch: Minibatch) -> Tensor:
        """Mean over rows: a row's equal terms sum to its one."""
        return maths.token_weights(minibatch.mask, "sequence", minibatch.total_tokens, minibatch.total_rows)
