"""`reinforce_plus_plus`: REINFORCE with per-token KL, advantages normalised over the whole batch, and PPO's clip.

Hu et al. 2025 (arXiv:2501.03262); `baseline: group` is the paper's REINFORCE++-baseline, for several
completions a prompt.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from rlhf_peft.plugin import Batch, PolicyGradient, PolicyOptions, maths


class ReinforcePlusPlusOptions(PolicyOptions):
    """Options of `reinforce_plus_plus`; for `baseline: group` set `num_generations`, and the KL in the loss (k2)."""

    beta: float = Field(0.01, ge=0, le=1e6, description="KL coefficient; 0: no reference is needed.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="Per-token estimator of the KL.")
    kl_placement: Literal["reward", "loss"] = Field("reward", description="Where the KL is subtracted.")
    baseline: Literal["none", "group"] = Field(
        "none", description="group: subtract the mean score of the prompt's completions first."
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount a token.")

    @model_validator(mode="after")
    def _a_group(self) -> ReinforcePlusPlusOptions:
        if self.baseline == "group" and self.num_generations < 2:
            raise ValueError("baseline: group compares completions of one prompt; use num_generations: 8")
        return self


class ReinforcePlusPlus(PolicyGradient):
    """Uses discounted returns, whitened over all tokens of the batch, as advantages."""

    Options = ReinforcePlusPlusOptions

    def advantages(self, batch: Batch, scores: Tensor) -> Tensor:
        """Advantages (R_t - mean) / std, [N, T]; R_t is the sum of score and -beta * KL from t on."""
        if self.options.baseline == "group":
            scores = maths.group_advantages(scores, batch.rollout.group, "none")
        rewards = self.token_rewards(batch, scores)
        returns = maths.discounted_returns(rewards, batch.mask, self.options.gamma)
        return maths.whiten(returns, batch.mask & batch.train.unsqueeze(-1))
