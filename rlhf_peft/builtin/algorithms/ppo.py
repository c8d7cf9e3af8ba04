"""`ppo`: proximal policy optimisation with a learned value, as it is used in RLHF.

Schulman et al. 2017 (arXiv:1707.06347); Ziegler et al. 2019 (arXiv:1909.08593) for the KL penalty and its controller;
Huang et al. 2024 (arXiv:2403.17031) for the details.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import Batch, MemoryNeeds, Minibatch, Outputs, PolicyGradient, PolicyOptions, maths


class PpoOptions(PolicyOptions):
    """Options of `ppo`; defaults are those of TRL's last PPO, or of Ziegler et al."""

    beta: float = Field(0.05, ge=0, le=1e6, description="KL coefficient.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="Per-token estimator of the KL.")
    kl_placement: Literal["reward", "loss"] = Field("reward", description="Where the KL is subtracted.")
    num_epochs: int = Field(4, gt=0, le=1000, description="Passes over a rollout.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount a token.")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of GAE.")
    cliprange_value: float | None = Field(
        0.2, ge=0, le=1e6, description="How far a value may move for gain; null: no clip."
    )
    vf_coef: float = Field(0.1, ge=0, le=1e6, description="Weight of the value loss.")
    whiten_advantages: bool = Field(
        True, description="Advantages get mean 0 and variance 1 (over n - 1, as in TRL) over all real tokens."
    )
    whiten_rewards: bool = Field(
        False, description="Per-token rewards get variance 1 (over n - 1) and keep their mean."
    )
    value: Literal["own", "policy", "reward"] = Field(
        "own",
        description="Trunk of the value head: its own adapter, the policy's, or the frozen reward model's (cheapest).",
    )


class Ppo(PolicyGradient):
    """Clipped policy and value losses with GAE advantages."""

    Options = PpoOptions
    metrics: ClassVar[Mapping[str, str]] = {
        **PolicyGradient.metrics,
        "value/loss": "mean over tokens of 0.5 max((V - R)^2, (V_old + clip(V - V_old) - R)^2)",
        "value/explained_variance": "1 - Var[R - V_old] / Var[R] over tokens",
        "value/mean": "mean of V_old over tokens",
        "return/mean": "mean of R = A + V_old over tokens, A before whitening",
        "clip_ratio/value_mean": "share of tokens where |V - V_old| > cliprange_value",
    }

    @classmethod
    def memory(cls, options: PpoOptions) -> MemoryNeeds:
        """Memory needs. A value head on the reward trunk needs no adapter and no forward of its own in the update."""
        savings = ("value=reward",) if options.value == "own" else ()
        return MemoryNeeds(rows_per_prompt=options.num_generations, savings=savings)

    def __init__(self, options: PpoOptions) -> None:
        super().__init__(options)
        self.roles = (*self.roles, "value")
        self.value = options.value

    def prepare(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Advantages and returns, [N, T], from GAE over scores and KL."""
        assert batch.values is not None
        options, mask = self.options, batch.mask & batch.train.unsqueeze(-1)
        rewards = self.token_rewards(batch, torch.where(batch.train, self.shaped(batch), 0.0))
        if options.whiten_rewards:
            rewards = maths.whiten(rewards, mask, keep_mean=True)
        advantages, returns = maths.gae(rewards, batch.values, mask, options.gamma, options.lam)
        logged = {
            **self.describe(advantages, mask),
            "value/explained_variance": float(maths.explained_variance(returns, batch.values, mask)),
            "value/mean": float(maths.masked_mean(batch.values, mask)),
            "return/mean": float(maths.masked_mean(returns, mask)),
        }
        if options.whiten_advantages:
            advantages = maths.whiten(advantages, mask)
        return {"advantages": advantages, "returns": returns}, logged

    def no_gradient(self, batch: Batch) -> Tensor:
        """Rows without a gradient: none, since the value learns from every row."""
        return torch.zeros(len(batch), dtype=torch.bool)

    def loss(self, outputs: Outputs, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """L = L_policy + vf_coef * L_value [+ beta * KL] [- entropy_coef * H] for each token, [n, T]."""
        assert minibatch.old_values is not None and outputs.values is not None
        options = self.options
        terms, logged = super().loss(outputs, minibatch)
        returns, old = minibatch.columns["returns"], minibatch.old_values
        value = maths.value_terms(outputs.values, old, returns, options.cliprange_value)
        logged["value/loss"] = value.detach()
        if options.cliprange_value is not None:
            moved = (outputs.values - old).abs() > options.cliprange_value
            logged["clip_ratio/value_mean"] = moved.float()
        return terms + options.vf_coef * value, logged
