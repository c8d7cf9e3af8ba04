"""`ppo`: proximal policy optimisation with a learned value, as RLHF uses it.

Schulman et al. 2017 (arXiv:1707.06347); Ziegler et al. 2019 (arXiv:1909.08593) for the KL penalty and its controller;
Huang et al. 2024 (arXiv:2403.17031) for the details.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rlhf_peft.plugin import (
    Minibatch,
    Options,
    Outputs,
    Prompt,
    Request,
    RequestContext,
    Scored,
    Selection,
    Totals,
    maths,
)

log = logging.getLogger("rlhf_peft")


class PpoOptions(Options):
    """PPO's coefficients; names and defaults follow TRL where it had one."""

    beta: float = Field(0.05, ge=0, description="KL coefficient.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="Per-token estimator of the KL.")
    kl_placement: Literal["reward", "loss"] = Field("reward", description="Where the KL is subtracted.")
    kl_target: float | None = Field(
        None, gt=0, description="Adapt beta towards this KL a completion, in nats; null: beta is fixed."
    )
    kl_horizon: int = Field(10_000, gt=0, description="Rows over which beta adapts.")
    num_epochs: int = Field(4, gt=0, description="Passes over a rollout.")
    num_minibatches: int = Field(1, gt=0, description="Updates in one pass.")
    num_generations: int = Field(1, gt=0, description="Completions of each prompt.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount a token.")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of GAE.")
    cliprange: float = Field(
        0.2, ge=0, description="Ratio is not pushed below 1 - cliprange (nor above 1 + it)."
    )
    cliprange_high: float | None = Field(None, ge=0, description="Upper bound's own width; null: cliprange.")
    cliprange_value: float | None = Field(
        0.2, ge=0, description="How far a value may move for gain; null: no clip."
    )
    vf_coef: float = Field(0.1, ge=0, description="Weight of the value loss.")
    entropy_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    whiten_advantages: bool = Field(
        True, description="Advantages get mean 0 and variance 1 over all real tokens."
    )
    whiten_rewards: bool = Field(False, description="Per-token rewards get variance 1 and keep their mean.")
    value: Literal["own", "policy", "reward"] = Field(
        "own",
        description="Trunk of the value head: its own adapter, the policy's, or the frozen reward model's (cheapest).",
    )

    @model_validator(mode="after")
    def _sound_kl(self) -> PpoOptions:
        if self.beta > 0:
            maths.check_kl_placement(self.kl_estimator, self.kl_placement)
        return self


class Ppo:
    """Clipped policy and value losses on GAE advantages."""

    Options = PpoOptions
    roles = ("policy", "reference", "value")
    metrics: ClassVar[Mapping[str, str]] = {
        "beta": "KL coefficient used in this step",
        "policy/loss": "mean over tokens of -min(r A, clip(r) A), r = exp(logp - old_logp)",
        "value/loss": "mean over tokens of 0.5 max((V - R)^2, (V_old + clip(V - V_old) - R)^2)",
        "value/explained_variance": "1 - Var[R - V_old] / Var[R] over tokens",
        "value/mean": "mean of V_old over tokens",
        "return/mean": "mean of R = A + V_old over tokens, A before whitening",
        "clip_ratio/region_mean": "share of tokens whose gradient the policy clip silences",
        "clip_ratio/value_mean": "share of tokens where |V - V_old| > cliprange_value",
    }

    def __init__(self, options: PpoOptions) -> None:
        self.options = options
        self.beta = options.beta
        self.value: Literal["own", "policy", "reward"] | None = options.value
        self.epochs = options.num_epochs
        self.minibatches = options.num_minibatches
        self.needs = frozenset({"old_logps"} | ({"entropy"} if options.entropy_coef else set()))
        warning = (
            maths.check_kl_placement(options.kl_estimator, options.kl_placement) if options.beta else None
        )
        if warning:
            log.warning("algorithm ppo: %s", warning)

    def requests(self, prompts: Sequence[Prompt], context: RequestContext) -> list[Request]:
        """`num_generations` completions of each prompt."""
        return [
            Request(prompt.ids, group, context.seed(group, k), context.params, columns=prompt.columns)
            for group, prompt in enumerate(prompts)
            for k in range(self.options.num_generations)
        ]

    def select(self, scored: Scored, round: int) -> Selection:
        """All rows that have a score."""
        return Selection(keep=~scored.scores.isnan())

    def prepare(self, scored: Scored, keep: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Advantages and returns, [N, T], from GAE over scores and KL."""
        assert scored.logps is not None and scored.ref_logps is not None and scored.values is not None
        options, mask = self.options, scored.mask & keep.unsqueeze(-1)
        in_reward = options.kl_placement == "reward"
        kl = maths.kl_estimate(scored.logps, scored.ref_logps, options.kl_estimator)
        scores = torch.where(keep, scored.scores, 0.0)
        rewards = maths.token_rewards(
            scores, kl, scored.mask, self.beta if in_reward else 0.0, scored.token_scores
        )
        if options.whiten_rewards:
            rewards = maths.whiten(rewards, mask, keep_mean=True)
        advantages, returns = maths.gae(rewards, scored.values, mask, options.gamma, options.lam)
        logged = {
            "beta": self.beta,
            "value/explained_variance": float(maths.explained_variance(returns, scored.values, mask)),
            "value/mean": float(maths.masked_mean(scored.values, mask)),
            "return/mean": float(maths.masked_mean(returns, mask)),
        }
        if options.whiten_advantages:
            advantages = maths.whiten(advantages, mask)
        return {"advantages": advantages, "returns": returns}, logged

    def unit(self, scored: Scored, keep: Tensor) -> Tensor:
        """Every row may go anywhere."""
        return torch.arange(len(scored))

    def weights(self, mask: Tensor, totals: Totals) -> Tensor:
        """Mean over the tokens of the whole minibatch."""
        return maths.token_weights(mask, "token", totals.tokens, totals.rows)

    def loss(self, outputs: Outputs, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """L = L_policy + vf_coef * L_value [+ beta * KL] [- entropy_coef * H], per token."""
        assert minibatch.logps is not None and minibatch.old_values is not None and outputs.values is not None
        options = self.options
        high = options.cliprange if options.cliprange_high is None else options.cliprange_high
        policy, clipped = maths.ppo_policy_terms(
            outputs.logps, minibatch.logps, minibatch.columns["advantages"], options.cliprange, high
        )
        if minibatch.importance is not None:
            policy = policy * minibatch.importance
        returns, old = minibatch.columns["returns"], minibatch.old_values
        value = maths.value_terms(outputs.values, old, returns, options.cliprange_value)
        terms = policy + options.vf_coef * value
        if options.kl_placement == "loss" and self.beta and minibatch.ref_logps is not None:
            terms = terms + self.beta * maths.kl_estimate(
                outputs.logps, minibatch.ref_logps, options.kl_estimator
            )
        if options.entropy_coef and outputs.entropy is not None:
            terms = terms - options.entropy_coef * outputs.entropy
        logged = {"policy/loss": policy, "value/loss": value, "clip_ratio/region_mean": clipped.float()}
        if options.cliprange_value is not None:
            moved = (outputs.values - old).abs() > options.cliprange_value
            logged["clip_ratio/value_mean"] = moved.float()
        return terms, logged

    def step_end(self, stats: Mapping[str, float]) -> dict[str, float]:
        """Adapt beta to the KL that was measured."""
        target = self.options.kl_target
        if target is not None:
            self.beta = maths.adaptive_beta(
                self.beta, stats["kl"], target, self.options.kl_horizon, stats["rows"]
            )
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The present beta."""
        return {"beta": self.beta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a present beta."""
        self.beta = float(state["beta"])
