"""What most RL algorithms share: their options, and the whole policy gradient apart from its advantages.

An algorithm is anything that has the methods of `hookspecs.Algorithm`. Most subclass `PolicyGradient`:

    class Reinforce(PolicyGradient):
        Options = PolicyOptions
        def advantages(self, batch, scores):
            return maths.group_advantages(scores, batch.rollout.group, "none")

Value functions (see `ppo`) and pairs (see `online_dpo`) are not part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from .. import maths
from ..hookspecs import Options, Prompt, RequestContext
from ..types import Batch, MemoryNeeds, Minibatch, Outputs, Request, Selection

log = logging.getLogger("rlhf_peft")

BASELINE = "baseline"
"""Tag of rows that only serve as a baseline: they are part of the batch, but enter no metric and no update."""


class AlgorithmOptions(Options):
    """How many completions are sampled, and how often they are used."""

    num_generations: int = Field(1, gt=0, le=2**12, description="Completions of each prompt.")
    num_epochs: int = Field(1, gt=0, le=1000, description="Passes over a rollout.")
    num_minibatches: int = Field(1, gt=0, le=2**20, description="Updates in one pass.")


class PolicyOptions(AlgorithmOptions):
    """Options of every policy gradient; names follow TRL where it has them."""

    beta: float = Field(0.0, ge=0, le=1e6, description="KL coefficient; 0: no reference is needed.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="Per-token estimator of the KL.")
    kl_placement: Literal["reward", "loss"] = Field("loss", description="Where the KL is subtracted.")
    kl_target: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Adapt beta towards this KL a completion, in nats; null: beta is fixed.",
    )
    kl_horizon: int = Field(10_000, gt=0, le=10**9, description="Rows over which beta adapts.")
    epsilon: float = Field(
        0.2, ge=0, le=1e6, description="Ratio is not pushed below 1 - epsilon (nor above 1 + it)."
    )
    epsilon_high: float | None = Field(
        None, ge=0, le=1e6, description="Upper bound's own width; null: epsilon."
    )
    entropy_coef: float = Field(0.0, ge=0, le=1e6, description="Weight of the entropy bonus.")
    mask_truncated_completions: bool = Field(
        False,
        description="Leave completions that did not end out of the update (DAPO's overlong filter). Where the loss is "
        "a mean over rows they count as zeros, as in TRL.",
    )
    overlong_buffer: int = Field(
        0,
        ge=0,
        le=2**24,
        description="Penalise the last so many tokens before max_new_tokens, linearly (DAPO, equation 13); 0: off.",
    )
    overlong_penalty: float = Field(1.0, ge=0, le=1e6, description="Penalty of a completion of full length.")
    dynamic_sampling: bool = Field(
        False, description="Sample more prompts in place of groups whose scores are all equal (DAPO)."
    )
    max_rounds: int = Field(
        4, gt=0, le=1000, description="Most rounds of sampling in one step, with dynamic_sampling."
    )

    @model_validator(mode="after")
    def _sound(self) -> PolicyOptions:
        if self.beta > 0:
            maths.check_kl_placement(self.kl_estimator, self.kl_placement)
        if self.kl_target is not None and self.beta == 0:
            raise ValueError(
                "kl_target: beta is 0 and adapts by a factor, so it would stay 0; begin with beta: 0.05"
            )
        if self.dynamic_sampling and self.num_generations < 2:
            raise ValueError("dynamic_sampling: one completion a prompt has no group; use num_generations: 8")
        return self


class AlgorithmBase:
    """Requests `num_generations` rows for each prompt, trains on all that have a score, and averages over tokens.

    Attributes:
        options: validated.
        max_new_tokens: most tokens of a completion, once requests were made.
    """

    Options: ClassVar[type[AlgorithmOptions]] = AlgorithmOptions
    roles: tuple[str, ...] = ("policy",)
    needs: frozenset[str] = frozenset()
    value: Literal["own", "policy", "reward"] | None = None
    metrics: ClassVar[Mapping[str, str]] = {}
    max_new_tokens = 0

    def __init__(self, options: Any) -> None:
        self.options = options
        self.epochs: int = options.num_epochs
        self.minibatches: int = options.num_minibatches

    @classmethod
    def memory(cls, options: Any) -> MemoryNeeds:
        """The memory needs: `num_generations` rows of each prompt."""
        return MemoryNeeds(rows_per_prompt=options.num_generations)

    def requests(self, prompts: Sequence[Prompt], context: RequestContext) -> list[Request]:
        """Request `num_generations` completions of each prompt."""
        self.max_new_tokens = context.params.max_new_tokens
        return [
            Request(prompt.ids, group, context.seed(group, k), context.params, columns=prompt.columns)
            for group, prompt in enumerate(prompts)
            for k in range(self.options.num_generations)
        ]

    def select(self, batch: Batch, round: int) -> Selection:
        """Train on all rows that have a score."""
        return Selection(train=~batch.scores.isnan())

    def minibatch_units(self, batch: Batch) -> Tensor:
        """Every row is its own unit."""
        return torch.arange(len(batch))

    def no_gradient(self, batch: Batch) -> Tensor:
        """No row is named."""
        return torch.zeros(len(batch), dtype=torch.bool)

    def weights(self, minibatch: Minibatch) -> Tensor:
        """Weights of a mean over the tokens of the whole minibatch."""
        return maths.token_weights(minibatch.mask, "token", minibatch.total_tokens, minibatch.total_rows)

    def step_end(self, stats: Mapping[str, float]) -> dict[str, float]:
        """Adapt nothing, and log nothing."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """An empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load nothing."""


class PolicyGradient(AlgorithmBase):
    """Clipped policy terms on advantages, with KL, entropy bonus and importance weights; see `PolicyOptions`.

    A subclass defines `advantages`, and, where its terms or their weights differ, `policy_terms` and `weights`.

    Attributes:
        beta: KL coefficient of this step.
        step_metrics: metrics of this step to log; a subclass may add its own, and names them in `metrics`.
    """

    Options: ClassVar[type[AlgorithmOptions]] = PolicyOptions
    metrics: ClassVar[Mapping[str, str]] = {
        "beta": "KL coefficient used in this step",
        "policy/loss": "mean over tokens of the policy's term; -min(r A, clip(r) A), r = exp(logp - old_logp), unless "
        "the algorithm says otherwise",
        "clip_ratio/region_mean": "share of tokens whose gradient the policy clip silences",
        "advantages/std": "standard deviation over tokens of the advantages that are trained on",
        "dynamic_sampling/kept": "share of groups whose scores are not all equal (dynamic_sampling only)",
        "overlong/mean": "mean over rows of the penalty for nearly too long completions (overlong_buffer only)",
    }

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.beta: float = options.beta
        self.roles = ("policy", "reference") if options.beta else ("policy",)
        self.needs = frozenset(
            {"on_policy"}
            | ({"old_logps"} if self.kl_in_reward else set())
            | ({"entropy"} if options.entropy_coef else set())
        )
        warning = (
            maths.check_kl_placement(options.kl_estimator, options.kl_placement) if options.beta else None
        )
        if warning:
            log.warning("algorithm %s: %s", type(self).__name__.lower(), warning)
        self._prompts = 0
        self.step_metrics: dict[str, float] = {}

    def requests(self, prompts: Sequence[Prompt], context: RequestContext) -> list[Request]:
        """Request `num_generations` completions of each prompt."""
        if context.round == 0:
            self._prompts, self.step_metrics = len(prompts), {}
        return super().requests(prompts, context)

    def select(self, batch: Batch, round: int) -> Selection:
        """Train on rows with a score; dynamic sampling replaces groups whose scores are all equal by more prompts."""
        options, zero_loss = self.options, None
        train = ~batch.scores.isnan()
        train &= torch.tensor([tag != BASELINE for tag in batch.rollout.tag])
        if options.mask_truncated_completions:
            cut = torch.tensor([word == "length" for word in batch.rollout.finish])
            train, zero_loss = train & ~cut, train & cut
        if not options.dynamic_sampling:
            return Selection(train, zero_loss=zero_loss)
        group = batch.rollout.group
        informative = [int(g) for g in group.unique() if maths.varies(batch.scores[train & (group == g)])]
        self.step_metrics["dynamic_sampling/kept"] = len(informative) / max(1, len(group.unique()))
        want = self._prompts - len(informative)
        if want > 0 and round + 1 < options.max_rounds:
            return Selection(train, want)
        if not informative:
            return Selection(train, zero_loss=zero_loss)
        among = torch.isin(group, torch.tensor(informative[: self._prompts]))
        return Selection(train & among, zero_loss=None if zero_loss is None else zero_loss & among)

    def prepare(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The column `advantages`, [N] or [N, T], and metrics to log."""
        advantages = self.advantages(batch, self.shaped(batch))
        return {"advantages": advantages}, self.describe(advantages, batch.mask & batch.train.unsqueeze(-1))

    def describe(self, advantages: Tensor, mask: Tensor) -> dict[str, float]:
        """Metrics of a step: beta, the standard deviation of the advantages over real tokens, and `step_metrics`."""
        wide = advantages if advantages.dim() == 2 else advantages.unsqueeze(-1).expand(mask.shape)
        std = float(maths.masked_var(wide, mask, unbiased=False).sqrt()) if bool(mask.any()) else 0.0
        return {"beta": self.beta, "advantages/std": std, **self.step_metrics}

    def shaped(self, batch: Batch) -> Tensor:
        """The scores [N] less the penalty for completions that are nearly too long."""
        options = self.options
        if not options.overlong_buffer:
            return batch.scores
        lengths = batch.mask.sum(-1)
        penalty = options.overlong_penalty * maths.overlong_penalty(
            lengths, self.max_new_tokens, options.overlong_buffer
        )
        self.step_metrics["overlong/mean"] = float(penalty.mean())
        return batch.scores - penalty

    def no_gradient(self, batch: Batch) -> Tensor:
        """Rows whose advantages are 0, where the loss has no other term."""
        if (self.beta and not self.kl_in_reward) or self.options.entropy_coef:
            return super().no_gradient(batch)
        advantages = batch.columns["advantages"]
        return advantages == 0 if advantages.dim() == 1 else (advantages == 0).all(-1)

    def advantages(self, batch: Batch, scores: Tensor) -> Tensor:
        """The advantages of rows [N] or of tokens [N, T].

        Args:
            batch: the rows, with the log-probabilities and values of the roles.
            scores: [N], NaN where a row has none.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no advantages")

    @property
    def kl_in_reward(self) -> bool:
        """Whether the KL is part of the reward."""
        return bool(self.beta) and self.options.kl_placement == "reward"

    def row_rewards(self, batch: Batch, scores: Tensor) -> Tensor:
        """The rewards of rows, [N]: score - beta * KL of the whole completion, plus the sum of per-token rewards."""
        out = scores.clone()
        if batch.token_scores is not None:
            out = out + maths.masked_sum(batch.token_scores, batch.mask, dim=-1)
        if self.kl_in_reward:
            out = out - self.beta * maths.masked_sum(self._kl(batch), batch.mask, dim=-1)
        return out

    def token_rewards(self, batch: Batch, scores: Tensor) -> Tensor:
        """The rewards of tokens, [N, T]: -beta * KL at each, plus the score at the last one (0 where there is none)."""
        kl = self._kl(batch) if self.kl_in_reward else torch.zeros(batch.mask.shape)
        beta = self.beta if self.kl_in_reward else 0.0
        return maths.token_rewards(scores.nan_to_num(0.0), kl, batch.mask, beta, batch.token_scores)

    def _kl(self, batch: Batch) -> Tensor:
        assert batch.old_logps is not None and batch.ref_logps is not None
        return maths.kl_estimate(batch.old_logps, batch.ref_logps, self.options.kl_estimator)

    def policy_terms(
        self, logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Terms [n, T] of the policy's loss, and whether the clip removed the gradient of the token, [n, T].

        Args:
            logps: [n, T] with gradients.
            old: [n, T] before the update.
            advantages: [n, T] or [n, 1].
            mask: [n, T] bool, actions.
        """
        low, high = self.clip
        return maths.ppo_policy_terms(logps, old, advantages, low, high)

    @property
    def clip(self) -> tuple[float, float]:
        """The widths of the clip range below and above a ratio of 1."""
        options = self.options
        return options.epsilon, options.epsilon if options.epsilon_high is None else options.epsilon_high

    def loss(self, outputs: Outputs, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """L = importance * L_policy + beta * KL - entropy_coef * H, per token; a term whose factor is 0 is left out."""
        options = self.options
        old = outputs.logps.detach() if minibatch.old_logps is None else minibatch.old_logps
        advantages = minibatch.columns["advantages"]
        if advantages.dim() == 1:
            advantages = advantages.unsqueeze(-1)
        terms, clipped = self.policy_terms(outputs.logps, old, advantages, minibatch.mask)
        if minibatch.importance is not None:
            terms = terms * minibatch.importance
        logged = {"policy/loss": terms.detach(), "clip_ratio/region_mean": clipped.float()}
        if self.beta and options.kl_placement == "loss":
            assert minibatch.ref_logps is not None
            terms = terms + self.beta * maths.kl_estimate(
                outputs.logps, minibatch.ref_logps, options.kl_estimator
            )
        if options.entropy_coef:
            assert outputs.entropy is not None
            terms = terms - options.entropy_coef * outputs.entropy
        return terms, logged

    def step_end(self, stats: Mapping[str, float]) -> dict[str, float]:
        """Adapt beta to the KL that was measured."""
        options = self.options
        if options.kl_target is not None and "kl" in stats:
            self.beta = maths.adaptive_beta(
                self.beta, stats["kl"], options.kl_target, options.kl_horizon, stats["rows"]
            )
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The current beta."""
        return {"beta": self.beta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with a saved beta."""
        self.beta = float(state["beta"])
