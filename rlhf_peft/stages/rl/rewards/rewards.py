"""Runs a stage's rewards on a rollout and adds them up.

Those that need no role start in `begin` and run while the model computes; `finish` runs the rest. Each row's score is
clipped, then normalised, then weighted; per-token scores are only weighted. What is logged is the raw score.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....engine import SharedBase
from ....errors import RewardError, UsageError
from ....hookspecs import Reward
from ....recipe.schema import RewardEntry, RlStage
from ....registry import Registry
from ....types import RewardBatch, Rollout, Scores
from .aggregate import Scoring, add_up, without_end
from .bound_reward import LOGPS, Given, Member, head_roles
from .event_loop import PATIENCE, Background

__all__ = ["Pending", "Rewards", "Scoring", "reward_batch", "without_end"]

GRACE = 5.0
"""Seconds that the event loop may be late."""


@dataclass(slots=True)
class Pending:
    """Rewards that are running.

    Attributes:
        batch: what they score.
        rows: the dataset's row, counted from 0, of each row; or None.
        seeds: reward name to the seed of its generator.
        futures: reward name to its scores, of those that have begun.
        folder: the current one when they began; an async reward may have left it.
    """

    batch: RewardBatch
    rows: Sequence[int] | None
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
        places = [f"stages.{stage}.rewards"] * len(entries) + [f"stages.{stage}.eval.rewards"] * len(measured)
        self._members = [
            _member(registry, entry, base, stage, f"{place}.{entry.name}" if reachable else "")
            for entry, place in zip(every, places, strict=True)
        ]
        self._background = Background()
        self._release = weakref.finalize(self, _close, self._background, list(self._members))

    @property
    def rewards(self) -> dict[str, Reward]:
        """Name to reward."""
        return {member.name: member.reward for member in self._members}

    @property
    def heads(self) -> tuple[str, ...]:
        """Roles whose heads must be run before `finish`."""
        return tuple(dict.fromkeys(role for member in self._members for role in member.heads))

    @property
    def logp_roles(self) -> tuple[str, ...]:
        """Those of "base" and "reference" whose log-probabilities must be there at `finish`."""
        wanted = {role for member in self._members for role in member.logps}
        return tuple(role for role in LOGPS if role in wanted)

    def score(
        self, batch: RewardBatch, stage: RlStage | None = None, rows: Sequence[int] | None = None
    ) -> Scoring:
        """Run all rewards and add them up; with a stage, apply its rule for completions that did not end.

        Args:
            batch: with the heads and log-probabilities that are asked for.
            stage: see above.
            rows: the dataset's row, counted from 0, of each row of the batch, for messages.

        Raises:
            RewardError: one raised, timed out, or gave something that is no score.
        """
        return self.finish(self.begin(batch, rows), batch.heads, batch.logps, stage)

    def begin(self, batch: RewardBatch, rows: Sequence[int] | None = None) -> Pending:
        """Start the rewards that need no role; does not wait.

        Args:
            batch: `heads` and `logps` may be empty as yet.
            rows: the dataset's row, counted from 0, of each row of the batch, for messages.
        """
        draw = lambda: int(torch.randint(2**62, (), generator=batch.generator))  # noqa: E731
        pending = Pending(batch, rows, {member.name: draw() for member in self._members})
        for member in self._members:
            if not member.waits:
                self._start(member, pending, {}, {})
        return pending

    def finish(
        self,
        pending: Pending,
        heads: Mapping[str, Tensor],
        logps: Mapping[str, Tensor],
        stage: RlStage | None = None,
    ) -> Scoring:
        """Run the other rewards, wait for all, and add them up.

        Args:
            pending: from `begin`.
            heads: role to [N], at least those of `heads`.
            logps: role to [N, T], at least those of `logp_roles`.
            stage: whose rule for completions that did not end is applied; None: none.

        Raises:
            RewardError: one raised, timed out, or gave something that is no score.
        """
        given: dict[str, Scores] = {}
        try:
            for member in self._members:
                if member.waits and member.place != "here":
                    self._start(member, pending, heads, logps)
            for member in self._members:
                if member.place == "here":
                    given[member.name] = member.score_here(_given(member, pending, heads, logps))
            given |= _results(self._background, self._members, pending.futures)
        except BaseException:
            pending.cancel()
            raise
        finally:
            os.chdir(pending.folder)
        return add_up(self._members, pending.batch, given, stage)

    def _start(self, member: Member, pending: Pending, heads: Any, logps: Any) -> None:
        coroutine = member.score(_given(member, pending, heads, logps))
        pending.futures[member.name] = self._background.submit(coroutine)

    def close(self) -> None:
        """End worker processes, connections and the event loop."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """Running normalisation, and what rewards keep: tensors and JSON only."""
        keep = {m.name: m.reward.state_dict() for m in self._members if hasattr(m.reward, "state_dict")}
        return {"scale": {m.name: m.scale.moments.state_dict() for m in self._members}, "rewards": keep}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; rewards that it does not know begin afresh."""
        for member in self._members:
            if member.name in state["scale"]:
                member.scale.moments.load_state_dict(state["scale"][member.name])
            if member.name in state["rewards"]:
                member.reward.load_state_dict(state["rewards"][member.name])


def _member(registry: Registry, entry: RewardEntry, base: SharedBase, stage: str, key: str) -> Member:
    reward: Reward = registry.make("rewards", entry.name, entry.options)
    heads = head_roles(base.roles.names, reward.roles)
    if not heads and any(role not in LOGPS for role in reward.roles):
        raise UsageError(
            f"rewards.{entry.name}: needs a reward head and there is none. Put a reward_model stage before this one, "
            "or name a trained one: init: {reward: runs/my-rm}."
        )
    known = registry.entry("rewards", entry.name)
    return Member(entry, reward, known.factory, str(known), heads, stage, key)


def _given(
    member: Member, pending: Pending, heads: Mapping[str, Tensor], logps: Mapping[str, Tensor]
) -> Given:
    """The batch as one reward may see it: its own heads, log-probabilities and generator."""
    own = dataclasses.replace(
        pending.batch,
        heads={role: heads[role] for role in member.heads},
        logps={role: logps[role] for role in member.logps if role in logps},
        generator=torch.Generator().manual_seed(pending.seeds[member.name]),
    )
    return Given(own, pending.rows)


def _results(
    background: Background, members: Sequence[Member], futures: Mapping[str, Future[Scores]]
) -> dict[str, Scores]:
    """All scores; the first error as soon as there is one."""
    while True:
        _, left = wait(futures.values(), timeout=GRACE, return_when=FIRST_EXCEPTION)
        out = {name: future.result() for name, future in futures.items() if future.done()}
        if not left:
            return out
        waiting = [m for m in members if m.place == "loop" and m.name in futures and m.name not in out]
        limits = [m.timeout for m in waiting if m.timeout is not None]
        # Where one may take as long as it likes, it may hold up the others, too.
        if waiting and len(limits) == len(waiting) and not background.answers(max(limits) + GRACE):
            names = " or ".join(member.label for member in waiting)
            raise RewardError(
                f"{names} never gives way: for {max(limits):g} s it did not await anything, so no timeout can stop it. "
                "Await what it waits for, or make it a plain function, which runs in a process of its own."
            )


def _close(background: Background, members: Sequence[Member]) -> None:
    """Holds no `Rewards`: it also runs when one is forgotten, and at exit."""
    if not background.started:
        return
    try:
        background.submit(_close_all(members)).result(PATIENCE)
    except TimeoutError:
        for member in members:
            if member.worker is not None:
                member.worker.kill()
    finally:
        background.close()


async def _close_all(members: Sequence[Member]) -> None:
    closing: list[Coroutine[Any, Any, Any]] = [_close_one(member) for member in members]
    await asyncio.gather(*closing)


async def _close_one(member: Member) -> None:
    if member.worker is not None:
        await member.worker.close()
    if hasattr(member.reward, "close"):
        closed = member.reward.close()
        if inspect.isawaitable(closed):
            await closed


def reward_batch(
    rollout: Rollout,
    heads: Mapping[str, Tensor],
    step: int,
    generator: torch.Generator,
    decode: Any,
    logps: Mapping[str, Tensor] | None = None,
    updates: int | None = None,
) -> RewardBatch:
    """What rewards see of a rollout; completions are text, or messages where the prompt is messages."""
    ids = [rollout.completion_ids(i) for i in range(len(rollout))]
    prompts = rollout.columns["prompt"]
    texts = [decode(row) for row in ids]
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    return RewardBatch(
        prompts=prompts,
        completions=completions,
        completion_ids=ids,
        finish=rollout.finish,
        columns=rollout.columns,
        rollout=rollout,
        heads=heads,
        step=step,
        generator=generator,
        logps=logps or {},
        updates=updates,
    )
