"""The curve of a metric over steps, tokens, seconds or KL, and the mean curve of several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy
import torch

from ..errors import UsageError
from ..maths import bootstrap_interval
from ..runs import History

Axis = Literal["steps", "tokens", "seconds", "kl"]
AXES: dict[str, str] = {
    "steps": "step",
    "tokens": "tokens",
    "seconds": "seconds",
    "kl": "KL to the reference, nats a completion",
}
POINTS = 200


@dataclass(frozen=True, slots=True)
class Curve:
    """Values of a metric along an axis.

    Attributes:
        x: values of the axis, ascending unless the axis is KL.
        y: one value of the metric for each x.
    """

    x: list[float]
    y: list[float]


@dataclass(frozen=True, slots=True)
class Band:
    """The mean of several runs along an axis.

    Attributes:
        x: values of the axis, ascending.
        mean: mean of the runs at each x.
        low: lower end of the interval of the mean; the mean itself for one run.
        high: upper end of the interval.
        runs: number of runs.
    """

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    runs: int


def heads(run: History, stage: str, metric: str) -> list[int]:
    """Numbers of the ensemble heads for which a metric was logged; empty if it was logged for no single head.

    Args:
        run: the run.
        stage: name of the stage.
        metric: name in metrics.jsonl.
    """
    numbers = {line["head"] for line in run.lines(stage) if metric in line and _number(line.get("head"))}
    return sorted(int(head) for head in numbers)


def curve(run: History, stage: str, metric: str, axis: Axis = "steps", *, head: int | None = None) -> Curve:
    """The curve of a metric in one stage; lines without it, or with NaN, are left out.

    Along `kl`, a metric of an evaluation is plotted over the KL of the evaluation.

    Args:
        run: the run.
        stage: name of the stage.
        metric: name in metrics.jsonl.
        axis: quantity on the x axis.
        head: number of an ensemble head; None: all of them.
    """
    x: list[float] = []
    y: list[float] = []
    seconds, tokens = 0.0, 0.0
    before: float | None = None
    for line in run.lines(stage):
        now = line.get("time")
        if isinstance(now, int | float):
            # The time of an interruption does not count; a line's `step_time` is the duration of its step.
            seconds += line.get("step_time") or (0.0 if before is None else run.elapsed(before, now))
            before = now
        tokens = line.get("num_tokens", tokens)
        value: Any = line.get(metric)
        kl = line.get("eval/kl" if metric.startswith("eval/") else "kl")
        position: Any = {"steps": line.get("step"), "tokens": tokens, "seconds": seconds, "kl": kl}[axis]
        is_requested_head = head is None or line.get("head") == head
        if is_requested_head and _number(value) and _number(position):
            x.append(float(position))
            y.append(float(value))
    return Curve(x, y)


def _number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def band(curves: Sequence[Curve], seed: int = 0) -> Band:
    """The mean of curves over the part of the axis that all of them cover, with a bootstrap interval of the mean.

    Raises:
        UsageError: no part of the axis is covered by all curves.
    """
    filled = [_ascending(c) for c in curves if c.x]
    if not filled:
        raise UsageError("no run has this metric.")
    low, high = max(c.x[0] for c in filled), min(c.x[-1] for c in filled)
    if low > high:
        raise UsageError("the runs have no part of this axis in common; compare them along another (--x).")
    shared = filled[0].x if all(c.x == filled[0].x for c in filled) else None
    x = shared or (sorted({float(v) for v in numpy.linspace(low, high, POINTS)}))
    values = numpy.array([numpy.interp(x, c.x, c.y) for c in filled])
    generator = torch.Generator().manual_seed(seed)
    mean = values.mean(0)
    ends = [
        bootstrap_interval(torch.from_numpy(column.copy()), generator, draws=1000)
        if len(filled) > 1
        else (m, m)
        for column, m in zip(values.T, mean, strict=True)
    ]
    return Band(list(x), mean.tolist(), [e[0] for e in ends], [e[1] for e in ends], len(filled))


def _ascending(unsorted: Curve) -> Curve:
    """The curve with one value for each x, in order; several values of one x are averaged."""
    grouped: dict[float, list[float]] = {}
    for position, value in zip(unsorted.x, unsorted.y, strict=True):
        grouped.setdefault(position, []).append(value)
    x = sorted(grouped)
    return Curve(x, [sum(grouped[position]) / len(grouped[position]) for position in x])
