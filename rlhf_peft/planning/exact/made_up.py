"""A reward and a sampler that stand in for those that a dry run cannot call: programs, servers, other models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...kit.sampling.options import LocalOptions
from ...kit.sampling.rows import rollout_of, start_rows
from ...plugin import Options, Register, RewardBatch, Scores, hookimpl
from ...types import Request, Rollout

REWARD, SAMPLER = "made_up", "made_up"


class NoOptions(Options):
    """There are none."""


class MadeUpReward:
    """Scores that differ between the rows of a group, so that every row is trained on."""

    Options = NoOptions
    roles: tuple[str, ...] = ()
    timeout: float | None = None

    def __init__(self, options: NoOptions) -> None:
        pass

    async def score(self, batch: RewardBatch) -> Scores:
        """0, 1, 1.41, 1.73, 2, ...: no row has the mean of its group."""
        return Scores(row=torch.arange(len(batch.completion_ids)).float().sqrt())


class MadeUpSampler:
    """Completions of full length, as a server would return them."""

    Options = LocalOptions
    name = SAMPLER

    def __init__(self, options: LocalOptions) -> None:
        self.params = options.params
        self.provides = frozenset({"logps", "row_seeds", "on_policy"})
        self._view: Any = None

    def sync(self, policy: Any, version: int) -> None:
        """Store what is known of the policy."""
        self._view = policy

    def close(self) -> None:
        """Nothing is open."""

    def sample(self, requests: Sequence[Request], context: Any = None) -> Rollout:
        """One completion for each request."""
        rows = start_rows(requests, self._view.max_length, self.name)
        for row in rows:
            for i in range(row.room):
                row.take(30 + i % 20, -1.0, self._view)
        return rollout_of(rows, 0)


@hookimpl
def rlhf_peft_register_rewards(register: Register) -> None:
    """Register the reward."""
    register(REWARD, MadeUpReward)


@hookimpl
def rlhf_peft_register_samplers(register: Register) -> None:
    """Register the sampler."""
    register(SAMPLER, MadeUpSampler)
