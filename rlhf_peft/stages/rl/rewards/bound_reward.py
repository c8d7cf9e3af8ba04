"""One reward of a stage: where it runs, what it is given, what its answer must look like, what its failure means."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ....errors import RewardError
from ....foreign import no_exit
from ....kit.functions import FunctionReward, SomeRowsFailed, Target, target_of
from ....kit.functions.in_process import preserved_settings
from ....kit.functions.process import Slow, WorkerProcess
from ....kit.functions.rebuild import plain
from ....kit.functions.reward import arguments, as_row, scores_of
from ....kit.functions.worker import BadScores
from ....recipe.schema import RewardEntry
from ....types import RewardBatch, Scores
from .normalize import RewardNormalizer

log = logging.getLogger("rlhf_peft.rewards")

LOGPS = ("base", "reference")
"""Roles of a reward that mean log-probabilities; all others are prefixes of heads."""

Place = Literal["loop", "worker", "here"]


class BoundReward:
    """A reward with its entry in the recipe.

    A function, and a reward with a plain `def score`, runs in a worker process; an `async def score` on the stage's
    event loop. In the run's own process, a plain one on its main thread and after the forwards, run those whose entry
    or class says `in_process`, those that need roles, and those that cannot be imported by name.

    Args:
        entry: the recipe's.
        reward: as its factory made it.
        factory: which a worker imports.
        label: for messages: name, distribution, version.
        heads: roles whose heads it reads.
        stage: name of the stage, for messages.
        key: of the entry, as the command line takes it; "": no key reaches it; None: that of a reward of the stage.
    """

    def __init__(
        self,
        entry: RewardEntry,
        reward: Any,
        factory: Any,
        label: str,
        heads: tuple[str, ...],
        stage: str = "rl",
        key: str | None = None,
    ) -> None:
        self.key = f"stages.{stage}.rewards.{entry.name}" if key is None else key
        self.entry, self.reward, self.label, self.heads, self.stage = entry, reward, label, heads, stage
        self.name, self.weight = entry.name, float(entry.weight)
        self.logps = tuple(role for role in reward.roles if role in LOGPS)
        self.timeout = entry.timeout if entry.timeout is not None else reward.timeout
        self.normalizer = RewardNormalizer(entry.clip, entry.normalize)
        self.worker: WorkerProcess | None = None
        self.place: Place = self._place(factory)

    def _place(self, factory: Any) -> Place:
        function = isinstance(self.reward, FunctionReward)
        is_async = self.reward.is_async if function else inspect.iscoroutinefunction(self.reward.score)
        own: Place = "loop" if is_async else "here"
        if self.entry.in_process or getattr(self.reward, "in_process", False) or self.reward.roles:
            return own
        if is_async and not function:
            return own
        target: Target | None = self.reward.target if function else target_of(factory)
        if target is None:
            log.info(
                "%s cannot be imported by name, so it runs in the run's own process, where a timeout cannot stop it.",
                self.label,
            )
            return own
        self.worker = WorkerProcess(target, None if function else self.entry.options)
        return "worker"

    @property
    def waits(self) -> bool:
        """Whether it can only run after the forwards."""
        return self.place == "here" or bool(self.heads or self.logps)

    # --- running ---

    async def score(self, batch: RewardBatch) -> Scores:
        """Scores of a batch, checked, on the event loop.

        Raises:
            RewardError: it failed, and its entry says stop.
        """
        try:
            scores = await (self._ask(batch) if self.worker else self._await(batch))
            return self._checked(scores, batch)
        except Exception as error:
            return self._failed(error, batch)

    def score_here(self, batch: RewardBatch) -> Scores:
        """Scores of a batch, checked, in the calling thread.

        Raises:
            RewardError: it failed, and its entry says stop.
        """
        begun = time.monotonic()
        try:
            with preserved_settings():
                scores = self.reward.score(batch)
            if self.timeout is not None and time.monotonic() - begun > self.timeout:
                raise Slow(f"took longer than {self.timeout:g} s")
            return self._checked(scores, batch)
        except Exception as error:
            return self._failed(error, batch)

    async def _await(self, batch: RewardBatch) -> Any:
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                with no_exit():
                    return await self.reward.score(batch)
        except TimeoutError:
            if limit.expired():
                raise Slow(f"took longer than {self.timeout:g} s") from None
            raise

    async def _ask(self, batch: RewardBatch) -> Scores:
        assert self.worker is not None
        answer = await self.worker.ask(self._message(batch), self.timeout)
        if "bad" in answer:
            raise SomeRowsFailed(answer["bad"], row=answer["row"])
        if "error" in answer:
            log.debug("%s", answer["traceback"])
            raise RewardError(f"raised {answer['error']}")
        more = {"metrics": answer["metrics"], "extra": answer["extra"]}
        if "scores" in answer:
            return Scores(row=as_row(answer["scores"]), **more)
        token = None if answer["token"] is None else torch.tensor(answer["token"])
        return Scores(row=torch.tensor(answer["row"]), token=token, **more)

    def _message(self, batch: RewardBatch) -> bytes:
        function = isinstance(self.reward, FunctionReward)
        message = {"arguments": arguments(batch), "step": batch.updates_done} if function else plain(batch)
        try:
            return json.dumps(message).encode()
        except (TypeError, ValueError):
            columns = {"prompts": batch.prompts, **batch.columns}
            name, kind = next(((n, k) for n, v in columns.items() if (k := _not_json(v))), ("", "object"))
            raise RewardError(
                f"cannot be given the column {name} in its worker process: it holds a {kind}, which is no JSON. Set "
                f"{self._setting('in_process=true')}"
            ) from None

    # --- checking ---

    def _checked(self, scores: Any, batch: RewardBatch) -> Scores:
        """The scores themselves, on the CPU, in float32.

        Raises:
            RewardError: they are none.
        """
        count = len(batch)
        try:
            scores = scores_of(scores, count)
        except BadScores as error:
            raise SomeRowsFailed(str(error), row=error.row) from None
        row = scores.row
        if row.isinf().any():
            where = int(row.isinf().nonzero()[0])
            message = f"gave an infinite score for row {where}. NaN abstains, anything else must be finite"
            raise SomeRowsFailed(message, row=where)
        for name, values in scores.extra.items():
            if len(values) != count:
                raise RewardError(f"gave {len(values)} values of extra {name} for {count} completions")
        return dataclasses.replace(scores, token=_token(scores.token, batch))

    # --- failing ---

    def _failed(self, error: Exception, batch: RewardBatch) -> Scores:
        """Scores that abstain, where the entry says so.

        Raises:
            RewardError: the entry says stop.
        """
        message = self._message_of(error, batch)
        if self.entry.on_error == "stop":
            raise RewardError(message) from error
        log.warning("%s It abstains from this batch.", message)
        nothing = Scores(row=torch.full((len(batch),), math.nan))
        rest = getattr(error, "scores", None)
        scores = rest if isinstance(rest, Scores) and rest.row.shape == nothing.row.shape else nothing
        return dataclasses.replace(scores, metrics={**scores.metrics, "failed": 1.0})

    def _message_of(self, error: Exception, batch: RewardBatch) -> str:
        text = f"raised {type(error).__name__}: {error}"
        if isinstance(error, RewardError):
            text = str(error).removeprefix(f"reward {self.name.rpartition(':')[2]}")
        colon = ":" if text.startswith(":") else ""
        what, _, rest = text.lstrip(": ").rstrip(".").partition(". ")
        rest = f" {rest}." if rest else ""
        place = _whereabouts(batch, getattr(error, "row", None))
        return f"{self.label}{colon} {what} at {self.stage} step {batch.step}.{rest} {place}{self._advice(error)}"

    def _advice(self, error: Exception) -> str:
        if self.entry.on_error == "abstain":
            return ""
        first = f"Raise {self._setting('timeout')}" if isinstance(error, Slow) else "Mend it"
        return f" {first}, or let it abstain from such a batch: {self._setting('on_error=abstain')}"

    def _setting(self, text: str) -> str:
        """A setting of the entry, as it is typed."""
        if self.key:
            return f"{self.key}.{text}"
        return f"{text.replace('=', ': ')} in --rewards '[{{name: {self.name}, ...}}]'"


def _token(token: torch.Tensor | None, batch: RewardBatch) -> torch.Tensor | None:
    if token is None:
        return None
    shape = (len(batch), int(batch.rollout.lengths.max()))
    if tuple(token.shape) != shape:
        raise RewardError(f"gave token scores of shape {tuple(token.shape)} where {shape} was expected")
    if not bool(token.isfinite().all()):
        where = int((~token.isfinite()).any(1).nonzero()[0])
        raise SomeRowsFailed(f"gave a token score for row {where} that is not finite", row=where)
    return token.detach().float().cpu()


def _whereabouts(batch: RewardBatch, row: int | None) -> str:
    """The prompt of a row, of the first where none is to blame; by its number in the dataset if that is known."""
    at = row or 0
    called = "First prompt of the batch" if row is None else f"Prompt of row {row}"
    if batch.dataset_rows is not None:
        return f"{called}: dataset row {batch.dataset_rows[at] + 1:,}."
    prompt = batch.prompts[at] if len(batch.prompts) > at else ""
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    return f"{called}: {text[:60]!r}."


def _not_json(value: Any) -> str | None:
    """The type of the first thing in a column that JSON cannot carry."""
    for item in value:
        try:
            json.dumps(item)
        except (TypeError, ValueError):
            return type(item).__name__
    return None


def head_roles(roles: Mapping[str, Any] | Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Which of the base's roles a reward's prefixes mean: `reward` every `reward` and `reward-*`."""
    prefixes = [prefix for prefix in wanted if prefix not in LOGPS]
    return tuple(
        role for role in roles for prefix in prefixes if role == prefix or role.startswith(f"{prefix}-")
    )
