"""Runs a stage's rewards on a batch and adds them up.

Those that need no role start in `begin` and run while the model computes; `finish` runs the rest. Each row's score is
clipped, then normalised, then weighted; per-token scores are only weighted. What is logged is the raw score.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field
from typing import Any

import torch

from ....engine import SharedBase
from ....errors import RewardError, UsageError
from ....hookspecs import Closeable, Reward, Stateful
from ....recipe.schema import RewardEntry, RlStage
from ....registry import Registry
from ....types import Batch, RewardBatch, Scores
from .aggregate import add_up
from .bound_reward import LOGPS, BoundReward, head_roles
from .event_loop import PATIENCE, EventLoopThread

GRACE = 5.0
"""Seconds that the event loop may be late."""

Decode = Callable[[Sequence[int]], str]


@dataclass(slots=True)
class Pending:
    """Rewards that are running.

    Attributes:
        batch: what they score; it is filled at the end.
        view: what they see of it.
        seeds: reward name to the seed of its generator.
        futures: reward name to its scores, of those that have begun.
        folder: the current one when they began; an async reward may have left it.
    """

    batch: Batch
    view: RewardBatch
    seeds: dict[str, int]
    futures: dict[str, Future[Scores]] = field(default_factory=dict)
    folder: str = field(default_factory=os.getcwd)

    def cancel(self) -> None:
        """Stop those that still run."""
        for future in self.futures.values():
            future.cancel()


class Rewards:
    """Several named rewards with weights. Close it when the stage ends.

    Args:
        registry: makes them by name.
        entries: the recipe's.
        base: whose heads they may ask for.
        stage: its name, for messages.
        measured: the recipe's that are only measured.
        reachable: whether keys of the recipe reach the entries, for messages.

    Raises:
        UsageError: a name is listed twice, or a reward needs a head and there is none.
    """

    def __init__(
        self,
        registry: Registry,
        entries: Sequence[RewardEntry],
        base: SharedBase,
        *,
        stage: str = "rl",
        measured: Sequence[RewardEntry] = (),
        reachable: bool = True,
    ) -> None:
        every = [*entries, *(entry.model_copy(update={"weight": 0.0}) for entry in measured)]
        if len({entry.name for entry in every}) < len(every):
            raise UsageError("rewards: one name is listed twice; give each reward once.")
        keys = [f"stages.{stage}.rewards"] * len(entries) + [f"stages.{stage}.eval.rewards"] * len(measured)
        self._bound = [
            _bind(registry, entry, base, stage, f"{key}.{entry.name}" if reachable else "")
            for entry, key in zip(every, keys, strict=True)
        ]
        self._loop = EventLoopThread()
        self._release = weakref.finalize(self, _close, self._loop, list(self._bound))

    @property
    def rewards(self) -> dict[str, Reward]:
        """Name to reward."""
        return {bound.name: bound.reward for bound in self._bound}

    @property
    def heads(self) -> tuple[str, ...]:
        """Roles whose heads must be in the batch at `finish`."""
        return tuple(dict.fromkeys(role for bound in self._bound for role in bound.heads))

    @property
    def logp_roles(self) -> tuple[str, ...]:
        """Those of "base" and "reference" whose log-probabilities must be in the batch at `finish`."""
        wanted = {role for bound in self._bound for role in bound.logps}
        return tuple(role for role in LOGPS if role in wanted)

    def score(
        self,
        batch: Batch,
        *,
        step: int,
        generator: torch.Generator,
        decode: Decode,
        updates: int | None = None,
        stage: RlStage | None = None,
    ) -> None:
        """Run all rewards and add them up; see `begin` and `finish`."""
        self.finish(self.begin(batch, step=step, generator=generator, decode=decode, updates=updates), stage)

    def begin(
        self,
        batch: Batch,
        *,
        step: int,
        generator: torch.Generator,
        decode: Decode,
        updates: int | None = None,
    ) -> Pending:
        """Start the rewards that need no role; does not wait.

        Args:
            batch: heads and log-probabilities may be missing as yet.
            step: the update that the batch is for, counted from 1.
            generator: of the rewards' random numbers.
            decode: gives the text of tokens.
            updates: updates before the batch; None: one less than `step`.
        """
        seeds = {bound.name: int(torch.randint(2**62, (), generator=generator)) for bound in self._bound}
        pending = Pending(batch, reward_batch(batch, step, generator, decode, updates), seeds)
        for bound in self._bound:
            if not bound.waits:
                self._start(bound, pending)
        return pending

    def finish(self, pending: Pending, stage: RlStage | None = None) -> None:
        """Run the other rewards, wait for all, and write their sum into the batch.

        Args:
            pending: from `begin`; its batch has the heads and log-probabilities that are asked for.
            stage: whose rule for completions that did not end is applied; None: none.

        Raises:
            RewardError: one raised, timed out, or gave something that is no score.
        """
        given: dict[str, Scores] = {}
        try:
            for bound in self._bound:
                if bound.waits and bound.place != "here":
                    self._start(bound, pending)
            for bound in self._bound:
                if bound.place == "here":
                    given[bound.name] = bound.score_here(_own_view(bound, pending))
            given |= _results(self._loop, self._bound, pending.futures)
        except BaseException:
            pending.cancel()
            raise
        finally:
            os.chdir(pending.folder)
        add_up(self._bound, pending.batch, given, stage)

    def _start(self, bound: BoundReward, pending: Pending) -> None:
        coroutine = bound.score(_own_view(bound, pending))
        pending.futures[bound.name] = self._loop.submit(coroutine)

    def close(self) -> None:
        """End worker processes, connections and the event loop."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """Running normalisation, and what rewards keep: tensors and JSON only."""
        return {
            "scale": {bound.name: bound.normalizer.moments.state_dict() for bound in self._bound},
            "rewards": {
                bound.name: bound.reward.state_dict()
                for bound in self._bound
                if isinstance(bound.reward, Stateful)
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; rewards that it does not know begin afresh."""
        for bound in self._bound:
            if bound.name in state["scale"]:
                bound.normalizer.moments.load_state_dict(state["scale"][bound.name])
            if bound.name in state["rewards"]:
                bound.reward.load_state_dict(state["rewards"][bound.name])


def _bind(registry: Registry, entry: RewardEntry, base: SharedBase, stage: str, key: str) -> BoundReward:
    reward: Reward = registry.make("rewards", entry.name, entry.options)
    heads = head_roles(base.roles.names, reward.roles)
    if not heads and any(role not in LOGPS for role in reward.roles):
        raise UsageError(
            f"rewards.{entry.name}: needs a reward head and there is none. Put a reward_model stage before this one, "
            "or name a trained one: init: {reward: runs/my-rm}."
        )
    known = registry.entry("rewards", entry.name)
    return BoundReward(entry, reward, known.factory, str(known), heads, stage, key)


def _own_view(bound: BoundReward, pending: Pending) -> RewardBatch:
    """What one reward sees of the batch: its own heads, log-probabilities and generator."""
    batch = pending.batch
    return dataclasses.replace(
        pending.view,
        heads={role: batch.heads[role] for role in bound.heads},
        logps={role: batch.role_logps[role] for role in bound.logps if role in batch.role_logps},
        generator=torch.Generator().manual_seed(pending.seeds[bound.name]),
    )


def _results(
    loop: EventLoopThread, rewards: Sequence[BoundReward], futures: Mapping[str, Future[Scores]]
) -> dict[str, Scores]:
    """All scores; the first error as soon as there is one."""
    while True:
        _, left = wait(futures.values(), timeout=GRACE, return_when=FIRST_EXCEPTION)
        out = {name: future.result() for name, future in futures.items() if future.done()}
        if not left:
            return out
        waiting = [r for r in rewards if r.place == "loop" and r.name in futures and r.name not in out]
        limits = [r.timeout for r in waiting if r.timeout is not None]
        # Where one may take as long as it likes, it may hold up the others, too.
        if waiting and len(limits) == len(waiting) and not loop.answers(max(limits) + GRACE):
            names = " or ".join(bound.label for bound in waiting)
            raise RewardError(
                f"{names} never gives way: for {max(limits):g} s it did not await anything, so no timeout can stop it. "
                "Await what it waits for, or make it a plain function, which runs in a process of its own."
            )


def _close(loop: EventLoopThread, rewards: Sequence[BoundReward]) -> None:
    """Holds no `Rewards`: it also runs when one is forgotten, and at exit."""
    if not loop.started:
        return
    try:
        loop.submit(_close_all(rewards)).result(PATIENCE)
    except TimeoutError:
        for bound in rewards:
            if bound.worker is not None:
                bound.worker.kill()
    finally:
        loop.close()


async def _close_all(rewards: Sequence[BoundReward]) -> None:
    await asyncio.gather(*(_close_one(bound) for bound in rewards))


async def _close_one(bound: BoundReward) -> None:
    if bound.worker is not None:
        await bound.worker.close()
    if isinstance(bound.reward, Closeable):
        closing = bound.reward.close()
        if inspect.isawaitable(closing):
            await closing


def reward_batch(
    batch: Batch, step: int, generator: torch.Generator, decode: Decode, updates: int | None = None
) -> RewardBatch:
    """What rewards see of a batch; completions are text, or messages where the prompt is messages."""
    rollout = batch.rollout
    ids = [rollout.completion_ids(i) for i in range(len(rollout))]
    prompts = rollout.columns["prompt"]
    completions = [
        decode(row) if isinstance(prompt, str) else [{"role": "assistant", "content": decode(row)}]
        for prompt, row in zip(prompts, ids, strict=True)
    ]
    return RewardBatch(
        prompts=prompts,
        completions=completions,
        completion_ids=ids,
        finish=rollout.finish,
        columns=rollout.columns,
        rollout=rollout,
        heads={},
        step=step,
        generator=generator,
        logps={},
        updates=updates,
        dataset_rows=batch.dataset_rows,
    )
