"""A figure of a run over steps, tokens, seconds or KL, and several runs together."""

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
    """A figure along an axis.

    Attributes:
        x: ascending, unless the axis is KL.
        y: one for each x.
    """

    x: list[float]
    y: list[float]


@dataclass(frozen=True, slots=True)
class Band:
    """The mean of several runs along an axis.

    Attributes:
        x: ascending.
        mean: of the runs.
        low: lower end of the interval of the mean; the mean itself for one run.
        high: upper end.
        runs: how many.
    """

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    runs: int


def heads(run: History, stage: str, figure: str) -> list[int]:
    """The heads of an ensemble that a figure was logged of, one after the other; empty: the figure is of none.

    Args:
        run: the run.
        stage: its stage.
        figure: of metrics.jsonl.
    """
    found = {line["head"] for line in run.lines(stage) if figure in line and _number(line.get("head"))}
    return sorted(int(head) for head in found)


def curve(run: History, stage: str, figure: str, axis: Axis = "steps", *, head: int | None = None) -> Curve:
    """A figure of one stage; lines that lack it, or have it as NaN, are left out.

    Along `kl` a figure of an evaluation goes with the evaluation's KL.

    Args:
        run: the run.
        stage: its stage.
        figure: of metrics.jsonl.
        axis: what it goes along.
        head: of an ensemble; None: all of them.
    """
    x: list[float] = []
    y: list[float] = []
    seconds, tokens = 0.0, 0.0
    before: float | None = None
    for line in run.lines(stage):
        now = line.get("time")
        if isinstance(now, int | float):
            # Where a run was interrupted nothing was done meanwhile; a step says how long it took.
            seconds += line.get("step_time") or (0.0 if before is None else run.elapsed(before, now))
            before = now
        tokens = line.get("num_tokens", tokens)
        value: Any = line.get(figure)
        kl = line.get("eval/kl" if figure.startswith("eval/") else "kl")
        place: Any = {"steps": line.get("step"), "tokens": tokens, "seconds": seconds, "kl": kl}[axis]
        own = head is None or line.get("head") == head
        if own and _number(value) and _number(place):
            x.append(float(place))
            y.append(float(value))
    return Curve(x, y)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def band(curves: Sequence[Curve], seed: int = 0) -> Band:
    """The mean of curves where all of them are, with a bootstrap interval of the mean.

    Raises:
        UsageError: nowhere are all of them.
    """
    there = [_ascending(c) for c in curves if c.x]
    if not there:
        raise UsageError("no run has this figure.")
    low, high = max(c.x[0] for c in there), min(c.x[-1] for c in there)
    if low > high:
        raise UsageError("the runs have no part of this axis in common; compare them along another (--x).")
    shared = there[0].x if all(c.x == there[0].x for c in there) else None
    x = shared or (sorted({float(v) for v in numpy.linspace(low, high, POINTS)}))
    values = numpy.array([numpy.interp(x, c.x, c.y) for c in there])
    generator = torch.Generator().manual_seed(seed)
    mean = values.mean(0)
    ends = [
        bootstrap_interval(torch.from_numpy(column.copy()), generator, draws=1000)
        if len(there) > 1
        else (m, m)
        for column, m in zip(values.T, mean, strict=True)
    ]
    return Band(list(x), mean.tolist(), [e[0] for e in ends], [e[1] for e in ends], len(there))


def _ascending(found: Curve) -> Curve:
    """One value for each x, in order; the mean where there are several."""
    grouped: dict[float, list[float]] = {}
    for place, value in zip(found.x, found.y, strict=True):
        grouped.setdefault(place, []).append(value)
    x = sorted(grouped)
    return Curve(x, [sum(grouped[place]) / len(grouped[place]) for place in x])
