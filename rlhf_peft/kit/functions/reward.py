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
    """The options of a function, which has none."""


class FunctionReward:
    """A reward that calls a function with the arguments of TRL's trainers.

    Where `target` says how to import the function, the stage calls it in a worker process; `score` calls it here.

    Args:
        options: none.
        function: that scores completions.
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
        """One score for each completion.

        Raises:
            RewardError: the function raised, or did not return one finite number or None for each completion.
        """
        metrics: dict[str, float] = {}
        extra: dict[str, list[Any]] = {}
        try:
            result = self.function(**keywords(arguments(batch), batch.updates_done, metrics, extra))
        except Exception as error:
            raise self._raised(error) from error
        if inspect.isawaitable(result):
            return self._awaited(result, len(batch), metrics, extra)
        return self._scores(result, len(batch), metrics, extra)

    async def _awaited(self, awaitable: Awaitable[Any], count: int, metrics: Any, extra: Any) -> Scores:
        try:
            values = await awaitable
        except Exception as error:
            raise self._raised(error) from error
        return self._scores(values, count, metrics, extra)

    def _scores(self, result: Any, count: int, metrics: Any, extra: Any) -> Scores:
        try:
            return Scores(row=as_row(numbers(result, count)), metrics=metrics, extra=extra)
        except BadScores as error:
            raise SomeRowsFailed(f"reward {self.name} {error}.", row=error.row) from None

    def _raised(self, error: Exception) -> RewardError:
        return RewardError(f"reward {self.name} raised {type(error).__name__}: {error}")


def function_reward(function: Callable[..., Any], name: str | None = None) -> Factory:
    """A factory for a function written for TRL, for a plugin to register.

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
    """The arguments that TRL passes to a reward function; `prompt` and `completion` are not among the columns."""
    columns = {name: values for name, values in batch.columns.items() if name not in ("prompt", "completion")}
    batch_arguments = {
        "prompts": batch.prompts,
        "completions": batch.completions,
        "completion_ids": batch.completion_ids,
    }
    return {**columns, **batch_arguments}


def scores_of(result: Any, count: int) -> Scores:
    """The scores that a reward returned, with `row` as a float32 tensor on the CPU.

    Raises:
        BadScores: it is no `Scores`, or its row is no sequence of that many numbers.
    """
    if not isinstance(result, Scores):
        raise BadScores(f"returned {described(result)}. Expected Scores")
    if not (result.token is None or isinstance(result.token, torch.Tensor)):
        raise BadScores(f"returned {described(result.token)} as token scores. Expected a tensor")
    row = result.row
    if not isinstance(row, torch.Tensor):
        values = sequence(row)
        without_nan = row if values is None else [None if value != value else value for value in values]
        row = as_row(numbers(without_nan, count))
    elif row.dim() != 1 or row.is_complex():
        raise BadScores(
            f"returned {described(row)} as scores. Expected {EXPECTED} for each of the {count} completions"
        )
    elif len(row) != count:
        raise BadScores(f"gave {counted(len(row))} for {count} completions")
    return dataclasses.replace(result, row=row.detach().float().cpu())


def as_row(values: Sequence[float | None]) -> torch.Tensor:
    """Scores as a tensor [N] float32; None becomes NaN, which means that the reward abstains."""
    with_nan = [math.nan if value is None else value for value in values]
    return torch.tensor(with_nan, dtype=torch.float32, device="cpu")
