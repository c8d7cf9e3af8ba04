"""A plain function as a reward, in the form that TRL's trainers take.

`f(prompts=, completions=, completion_ids=, **columns) -> list[float | None]`, sync or async; None abstains. It is also
given `log_metric`, `log_extra` and `trainer_state`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel

from ...errors import RewardError
from ...hookspecs import Factory, Options
from ...types import RewardBatch, Scores
from .target import FileFunction, Target, target_of
from .worker import EXPECTED, BadScores, awaited, counted, described, keywords, numbers, sequence


class SomeRowsFailed(RewardError):
    """Some rows have no score; where the recipe lets the reward abstain, the others keep theirs.

    Attributes:
        scores: of all rows, NaN where there is none.
        row: the first that failed.
    """

    def __init__(self, message: str, scores: Scores | None = None, row: int | None = None) -> None:
        super().__init__(message)
        self.scores, self.row = scores, row


class FunctionOptions(Options):
    """A function has none."""


class FunctionReward:
    """Calls a function with the names that TRL uses.

    It is called in a worker process by the stage, where `target` says how to import it; `score` calls it here.

    Args:
        options: none.
        function: what scores.
        name: of the reward.
        target: where a worker finds the function; default: by its own name.
    """

    Options: ClassVar[type[BaseModel]] = FunctionOptions
    roles: tuple[str, ...] = ()
    timeout: float | None = None

    def __init__(
        self, options: BaseModel, function: Callable[..., Any], name: str, target: Target | None = None
    ) -> None:
        self.function, self.name = function, name
        self.target = target or target_of(function)

    @property
    def is_async(self) -> bool:
        """Whether a call of the function is awaited."""
        if isinstance(self.function, FileFunction):
            return self.function.is_async
        return awaited(self.function)

    def score(self, batch: RewardBatch) -> Scores | Awaitable[Scores]:
        """One number a completion.

        Raises:
            RewardError: the function raised, or did not give one finite number or None for each completion.
        """
        metrics: dict[str, float] = {}
        extra: dict[str, list[Any]] = {}
        try:
            given = self.function(**keywords(arguments(batch), batch.updates_done, metrics, extra))
        except Exception as error:
            raise self._raised(error) from error
        if inspect.isawaitable(given):
            return self._awaited(given, len(batch), metrics, extra)
        return self._scores(given, len(batch), metrics, extra)

    async def _awaited(self, given: Awaitable[Any], count: int, metrics: Any, extra: Any) -> Scores:
        try:
            values = await given
        except Exception as error:
            raise self._raised(error) from error
        return self._scores(values, count, metrics, extra)

    def _scores(self, given: Any, count: int, metrics: Any, extra: Any) -> Scores:
        try:
            return Scores(row=as_row(numbers(given, count)), metrics=metrics, extra=extra)
        except BadScores as error:
            raise SomeRowsFailed(f"reward {self.name} {error}.", row=error.row) from None

    def _raised(self, error: Exception) -> RewardError:
        return RewardError(f"reward {self.name} raised {type(error).__name__}: {error}")


def function_reward(function: Callable[..., Any], name: str | None = None) -> Factory:
    """The factory of a function written for TRL, for a plugin to register.

        register("polite", function_reward(polite))

    Args:
        function: `f(prompts=, completions=, completion_ids=, **columns) -> list[float | None]`, sync or async.
        name: in messages; default: the function's own.
    """
    called = str(name or getattr(function, "__name__", type(function).__name__))

    def make(options: FunctionOptions) -> FunctionReward:
        return FunctionReward(options, function, called)

    make.Options = FunctionOptions  # type: ignore[attr-defined]
    return make


def arguments(batch: RewardBatch) -> dict[str, Any]:
    """What TRL gives a reward function of a batch; `prompt` and `completion` are not columns."""
    columns = {name: values for name, values in batch.columns.items() if name not in ("prompt", "completion")}
    given = {
        "prompts": batch.prompts,
        "completions": batch.completions,
        "completion_ids": batch.completion_ids,
    }
    return {**columns, **given}


def scores_of(given: Any, count: int) -> Scores:
    """What a reward returned, its `row` as a tensor.

    Raises:
        BadScores: it is no `Scores`, or its row is no sequence of that many numbers.
    """
    if not isinstance(given, Scores):
        raise BadScores(f"returned {described(given)}. Expected Scores")
    if not (given.token is None or isinstance(given.token, torch.Tensor)):
        raise BadScores(f"returned {described(given.token)} as token scores. Expected a tensor")
    row = given.row
    if not isinstance(row, torch.Tensor):
        values = sequence(row)
        kept = row if values is None else [None if value != value else value for value in values]
        row = as_row(numbers(kept, count))
    elif row.dim() != 1 or row.is_complex():
        raise BadScores(
            f"returned {described(row)} as scores. Expected {EXPECTED} for each of the {count} completions"
        )
    elif len(row) != count:
        raise BadScores(f"gave {counted(len(row))} for {count} completions")
    return dataclasses.replace(given, row=row.detach().float().cpu())


def as_row(values: Sequence[float | None]) -> torch.Tensor:
    """[N] float32; None becomes NaN, which abstains."""
    given = [math.nan if value is None else value for value in values]
    return torch.tensor(given, dtype=torch.float32, device="cpu")
