"""Evaluation on held-out prompts: the policy answers them with fixed seeds, and everything is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import maths
from ...hookspecs import Sampler
from ...session.policy_view import BaseView
from ...session.sampling import sample
from ...session.token_budget import TokenBudget
from ...types import Batch, Request, Rollout
from .forwards import RoleForwards, RoleNeeds
from .metrics import describe_kl, describe_rollout
from .rewards import Rewards


class ScoreContext:
    """`SampleContext`: the stage's rewards, for samplers that choose among what they drew.

    Args:
        forwards: run the roles that rewards ask for.
        rewards: of the stage.
        view: decodes.
        generator: of the rewards' random numbers.
        step: the update that the rollout is for.
    """

    def __init__(
        self, forwards: RoleForwards, rewards: Rewards, view: BaseView, generator: torch.Generator, step: int
    ) -> None:
        self._forwards, self._rewards, self._view = forwards, rewards, view
        self._generator, self._step = generator, step

    def score(self, rollout: Rollout) -> Tensor:
        """[N] weighted sum of the rewards."""
        batch, rewards = Batch.of(rollout), self._rewards
        self._forwards.fill(batch, RoleNeeds(heads=rewards.heads, role_logps=rewards.logp_roles))
        rewards.score(batch, step=self._step, generator=self._generator, decode=self._view.decode)
        return batch.scores


@dataclass(slots=True)
class Answers:
    """What the policy wrote for the held-out prompts, and its metrics."""

    batch: Batch
    texts: list[str]
    metrics: dict[str, float]


class Evaluator:
    """Answers the same prompts with the same seeds whenever it runs.

    Args:
        prompts: held-out prompts.
        sampler: writes the answers.
        budget: of prompts that it answers at once.
        rewards: those that are trained on, and those that are only measured.
        forwards: for the KL and the heads.
        view: the policy.
        seed: gives each row its seed.
    """

    def __init__(
        self,
        prompts: Sequence[Any],
        sampler: Sampler,
        budget: TokenBudget,
        rewards: Rewards,
        forwards: RoleForwards,
        view: BaseView,
        seed: Callable[..., int],
    ) -> None:
        self.prompts, self.sampler, self.budget = prompts, sampler, budget
        self.rewards, self.forwards, self.view, self._seed = rewards, forwards, view, seed

    def run(self, step: int) -> Answers:
        """Sample, score and measure."""
        rewards, view = self.rewards, self.view
        self.sampler.sync(view, step)
        requests = [
            Request(prompt.ids, i, self._seed("eval", i), self.sampler.params, columns=prompt.columns)
            for i, prompt in enumerate(self.prompts)
        ]
        context = ScoreContext(self.forwards, rewards, view, self._generator("judge"), step)
        batch = Batch.of(sample(self.sampler, requests, self.budget, context))
        needs = RoleNeeds(policy=True, reference=True, heads=rewards.heads, role_logps=rewards.logp_roles)
        self.forwards.fill(batch, needs)
        rewards.score(
            batch, step=step, generator=self._generator("rewards"), decode=view.decode, updates=step
        )
        return Answers(batch, _texts(batch, view), {f"eval/{k}": v for k, v in _metrics(batch).items()})

    def _generator(self, stream: str) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed("eval", stream))


def _texts(batch: Batch, view: BaseView) -> list[str]:
    return [view.decode(batch.rollout.completion_ids(i)) for i in range(len(batch))]


def _metrics(batch: Batch) -> dict[str, float]:
    assert batch.old_logps is not None and batch.ref_logps is not None
    rollout = batch.rollout
    metrics = {"reward": float(batch.scores.nanmean())}
    metrics |= {f"rewards/{name}/mean": float(values.nanmean()) for name, values in batch.components.items()}
    metrics |= describe_kl(batch.old_logps, batch.ref_logps, batch.mask) | describe_rollout(rollout)
    metrics["distinct_2"] = maths.distinct_n([rollout.completion_ids(i) for i in range(len(rollout))], 2)
    return metrics
