"""Evaluation on held-out prompts: the policy answers them with fixed seeds, and everything is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ... import maths
from ...hookspecs import Sampler
from ...session.policy_view import BaseView
from ...session.sampling import sample
from ...session.token_budget import Budget
from ...types import Request, Rollout
from .collect import Judge
from .forwards import Scorer
from .metrics import describe_kl, describe_rollout
from .rewards.rewards import Rewards, Scoring, reward_batch


@dataclass(slots=True)
class Answers:
    """What the policy wrote for the held-out prompts, and its figures."""

    rollout: Rollout
    texts: list[str]
    scoring: Scoring
    kl: list[float]
    metrics: dict[str, float]


class Evaluator:
    """Answers the same prompts with the same seeds whenever it is called.

    Args:
        prompts: held-out prompts.
        sampler: writes the answers.
        budget: of prompts that it answers at once.
        rewards: those that are trained on, and those that are only measured.
        scorer: for the KL and the heads.
        seed: gives each row its seed.
    """

    def __init__(
        self,
        prompts: Sequence[Any],
        sampler: Sampler,
        budget: Budget,
        rewards: Rewards,
        scorer: Scorer,
        seed: Callable[..., int],
    ) -> None:
        self.prompts, self.sampler, self.budget = prompts, sampler, budget
        self.rewards, self.scorer, self._seed = rewards, scorer, seed

    def __call__(self, view: BaseView, step: int) -> Answers:
        """Sample, score and measure."""
        self.sampler.sync(view, step)
        requests = [
            Request(prompt.ids, i, self._seed("eval", i), self.sampler.params, columns=prompt.columns)
            for i, prompt in enumerate(self.prompts)
        ]
        judge = Judge(self.scorer, self.rewards, view, self._generator("judge"), step)
        rollout = sample(self.sampler, requests, self.budget, judge)
        quantities = self.scorer(
            rollout, values=False, heads=self.rewards.heads, readers=self.rewards.logp_roles
        )
        assert quantities.logps is not None and quantities.ref_logps is not None
        batch = reward_batch(
            rollout,
            quantities.heads,
            step,
            self._generator("rewards"),
            view.decode,
            quantities.readings,
            updates=step,
        )
        scoring = self.rewards.score(batch)
        mask = torch.nn.utils.rnn.pad_sequence(rollout.action_mask, batch_first=True, padding_value=False)
        metrics = {"reward": float(scoring.scores.nanmean())}
        metrics |= {
            f"rewards/{name}/mean": float(values.nanmean()) for name, values in scoring.components.items()
        }
        metrics |= describe_kl(quantities.logps, quantities.ref_logps, mask) | describe_rollout(rollout)
        metrics["distinct_2"] = maths.distinct_n([rollout.completion_ids(i) for i in range(len(rollout))], 2)
        kl = maths.masked_sum(quantities.logps - quantities.ref_logps, mask, dim=-1).tolist()
        return Answers(
            rollout, batch.texts, scoring, kl, {f"eval/{key}": value for key, value in metrics.items()}
        )

    def _generator(self, stream: str) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed("eval", stream))
