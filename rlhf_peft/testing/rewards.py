"""Checks that rewards keep the rules of the plugin interface."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..types import RewardBatch, Scores
from .doubles import make_reward_batch
from .rules import ConformanceError, global_streams_untouched, is_json, make, require, require_metrics, same

MakeBatch = Callable[..., RewardBatch]


def check_reward(
    factory: Any,
    options: Mapping[str, Any] | None = None,
    make_batch: MakeBatch = make_reward_batch,
    *,
    compares_rows: bool = False,
) -> None:
    """Check that a reward keeps the rules.

    It returns one finite number, or NaN, for each row, and the same for the same batch and seed. Each metric that it
    returns has a formula in its class attribute `metrics`. It draws nothing from
    global random streams and leaves the batch unchanged. Where it draws no random numbers, the score of a row does not
    depend on the other rows of the batch.

    Args:
        factory: what is registered.
        options: as a recipe gives them.
        make_batch: called without arguments, and with `conversational=True`; for rewards that need certain columns,
            `functools.partial(make_reward_batch, columns={...})`.
        compares_rows: the reward compares the rows of a prompt, so that a score may depend on other rows.

    Raises:
        ConformanceError: a rule is broken.
    """
    reward = make(factory, options)
    who = f"reward {factory.__name__}" if hasattr(factory, "__name__") else "reward"
    _check_attributes(reward, who)
    for conversational in (False, True):
        batch = make_batch(conversational=conversational)
        scores = _check_scores(reward, batch, who)
        again = run(make(factory, options), make_batch(conversational=conversational))
        require(
            same(scores.row, again.row),
            f"{who}: the same batch and seed gave other scores: {scores.row} and {again.row}.",
        )
        if not compares_rows:
            _check_rows_alone(factory, options, make_batch, conversational, scores, who)


def run(reward: Any, batch: RewardBatch) -> Scores:
    """The scores of a batch, whether `score` is async or not."""
    result = reward.score(batch)
    scores: Scores = asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result
    return scores


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def _check_attributes(reward: Any, who: str) -> None:
    for name in ("roles", "timeout", "score"):
        require(hasattr(reward, name), f"{who} has no `{name}`.")
    roles = reward.roles
    require(
        isinstance(roles, tuple) and all(isinstance(r, str) for r in roles),
        f"{who}.roles is a tuple of words, found {roles!r}.",
    )
    timeout = reward.timeout
    require(timeout is None or timeout > 0, f"{who}.timeout is seconds or None, found {timeout!r}.")
    if not inspect.iscoroutinefunction(reward.score):
        require(
            not roles,
            f"{who}: a plain `def score` runs in a process of its own, where no roles are; use `async def`.",
        )


def _check_scores(reward: Any, batch: RewardBatch, who: str) -> Scores:
    n, width = len(batch), int(batch.rollout.lengths.max())
    before = copy.deepcopy((batch.prompts, batch.completions, batch.completion_ids, batch.columns))
    with global_streams_untouched(who):
        scores = run(reward, batch)
    require(isinstance(scores, Scores), f"{who}.score gives Scores, found {type(scores).__name__}.")
    after = (batch.prompts, batch.completions, batch.completion_ids, batch.columns)
    require(same(before, after), f"{who} changed the batch it was given; other rewards see it too.")
    row = scores.row
    require(
        isinstance(row, torch.Tensor) and row.shape == (n,),
        f"{who} gave scores {_shape(row)} for {n} completions, expected ({n},).",
    )
    require(row.is_floating_point(), f"{who} gave {row.dtype} scores, expected float32.")
    require(not row.isinf().any(), f"{who} gave an infinite score; NaN abstains, anything else is finite.")
    if scores.token is not None:
        require(
            scores.token.shape == (n, width),
            f"{who} gave token scores {_shape(scores.token)}, expected ({n}, {width}).",
        )
        require(scores.token.isfinite().all(), f"{who} gave a token score that is not finite.")
    require_metrics(scores.metrics, who, getattr(reward, "metrics", {}))
    for name, values in scores.extra.items():
        require(
            len(values) == n and is_json(list(values)),
            f"{who}: extra {name!r} is {n} JSON values, one a row.",
        )
    return scores


def _check_rows_alone(
    factory: Any, options: Any, make_batch: MakeBatch, conversational: bool, scores: Scores, who: str
) -> None:
    batch = make_batch(conversational=conversational)
    start = batch.generator.get_state()
    run(make(factory, options), batch)
    if not torch.equal(start, batch.generator.get_state()):
        return  # a reward that draws random numbers draws others for other rows
    for i in range(len(batch)):
        alone = run(make(factory, options), rows_of(batch, [i])).row
        close = torch.allclose(
            alone, scores.row[i : i + 1].to(alone.dtype), rtol=1e-4, atol=1e-5, equal_nan=True
        )
        if not close:
            raise ConformanceError(
                f"{who}: row {i} got {float(scores.row[i]):g} in the batch and {float(alone[0]):g} "
                "alone. Let a row depend on itself alone, or check it with compares_rows=True."
            )


def rows_of(batch: RewardBatch, index: list[int]) -> RewardBatch:
    """A batch of some rows of another one.

    Args:
        batch: that the rows are taken from.
        index: numbers of the rows.
    """

    def pick(values: Any) -> Any:
        return [values[i] for i in index]

    rollout = batch.rollout.rows(index)
    width = int(rollout.lengths.max())
    return RewardBatch(
        prompts=pick(batch.prompts),
        completions=pick(batch.completions),
        completion_ids=pick(batch.completion_ids),
        finish=pick(batch.finish),
        columns={name: pick(values) for name, values in batch.columns.items()},
        rollout=rollout,
        heads={name: values[index] for name, values in batch.heads.items()},
        step=batch.step,
        generator=batch.generator,
        logps={name: values[index, :width] for name, values in batch.logps.items()},
    )


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__
