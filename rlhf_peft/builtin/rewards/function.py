"""A plain function as a reward, in the form that TRL's trainers take.

`f(prompts=, completions=, completion_ids=, **columns) -> list[float | None]`, sync or async; None abstains.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch

from rlhf_peft.plugin import Options, RewardBatch, RewardError, Scores


class FunctionOptions(Options):
    """A function has none."""


class FunctionReward:
    """Calls a function with the names that TRL uses."""

    Options = FunctionOptions
    roles: tuple[str, ...] = ()
    scope: Literal["row", "group"] = "row"
    timeout: float | None = None

    def __init__(self, options: FunctionOptions, function: Callable[..., Any], name: str) -> None:
        self.function, self.name = function, name

    async def score(self, batch: RewardBatch) -> Scores:
        """One number a completion.

        Raises:
            RewardError: the function raised, or did not give one number or None for each completion.
        """
        metrics: dict[str, float] = {}
        extra: dict[str, list[Any]] = {}
        columns = {name: values for name, values in batch.columns.items() if name != "prompt"}
        try:
            given = self.function(
                prompts=batch.prompts,
                completions=batch.completions,
                completion_ids=batch.completion_ids,
                log_metric=lambda name, value: metrics.__setitem__(name, float(value)),
                log_extra=lambda name, values: extra.__setitem__(name, list(values)),
                trainer_state=_State(batch.step),
                **columns,
            )
            if inspect.isawaitable(given):
                given = await given
        except Exception as error:
            raise RewardError(f"reward {self.name} raised {type(error).__name__}: {error}") from error
        return Scores(row=self._numbers(given, len(batch)), metrics=metrics, extra=extra)

    def _numbers(self, given: Any, count: int) -> torch.Tensor:
        values = list(given) if given is not None and not isinstance(given, str) else []
        if len(values) != count:
            raise RewardError(f"reward {self.name} gave {len(values)} scores for {count} completions.")
        try:
            return torch.tensor(
                [float("nan") if v is None else float(v) for v in values], dtype=torch.float32
            )
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"reward {self.name} gave something that is not a number or None ({error})."
            ) from error


class _State:
    """As much of transformers' TrainerState as reward functions read."""

    def __init__(self, step: int) -> None:
        self.global_step = step
