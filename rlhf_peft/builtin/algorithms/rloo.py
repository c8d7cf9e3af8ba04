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
    """Options of `rloo`; defaults are TRL's. The KL is part of a completion's reward."""

    num_generations: int = Field(2, gt=1, le=2**12, description="Completions of each prompt.")
    beta: float = Field(0.05, ge=0, le=1e6, description="KL coefficient; 0: no reference is needed.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="Per-token estimator of the KL.")
    kl_placement: Literal["reward", "loss"] = Field("reward", description="Where the KL is subtracted.")
    normalize_advantages: bool = Field(
        False, description="Advantages get mean 0 and variance 1 over the batch."
    )


class Rloo(PolicyGradient):
    """Clipped terms with the ratio of the whole completion and leave-one-out advantages."""

    Options = RlooOptions
    metrics: ClassVar[Mapping[str, str]] = {
        **PolicyGradient.metrics,
        "policy/loss": "mean over tokens of -min(r A, clip(r) A), r = exp(sum over the row of logp - old_logp)",
    }

    def advantages(self, batch: Batch, scores: Tensor) -> Tensor:
        """The reward, KL included, minus the mean of the others in the group, [N]."""
        rewards = self.row_rewards(batch, scores)
        advantages = maths.leave_one_out(rewards, batch.rollout.group)
        if not self.options.normalize_advantages:
            return advantages
        scored = ~rewards.isnan()
        spread = advantages[scored].std() if int(scored.sum()) > 1 else advantages.new_zeros(())
        return ((advantages - advantages[scored].mean()) / (spread + 1e-4)).where(scored, advantages)

    def policy_terms(
        self, logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """PPO's terms with the ratio of the whole completion at each of its tokens, [n, T]."""
        low, high = self.clip
        ratio = maths.masked_sum(logps - old, mask, dim=-1).unsqueeze(-1)
        return maths.ppo_policy_terms(logps, old, advantages, low, high, ratio)

    def weights(self, minibatch: Minibatch) -> Tensor:
        """Weights that give the mean over rows; the equal terms of a row sum to its single term."""
        return maths.token_weights(minibatch.mask, "sequence", minibatch.total_tokens, minibatch.total_rows)
