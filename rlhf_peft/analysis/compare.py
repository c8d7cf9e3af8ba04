"""Compares several runs: grouped by a key of their recipes, with different seeds together."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..runs import History, distinct
from ..runs.headlines import HEADLINES
from .curves import Axis, Band, Curve, band, curve

IGNORED_KEYS = ("name", "output_dir", "seed", "version")
"""Keys in which runs may differ without being listed as different."""


@dataclass(frozen=True)
class Group:
    """Runs that have the same value of the key.

    Attributes:
        label: the value, or the run's name if no key is given.
        runs: the runs.
        curves: the curve of each run.
        band: mean and interval of the curves.
    """

    label: str
    runs: list[History]
    curves: list[Curve]
    band: Band


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        stage: the compared stage.
        metric: the compared metric.
        axis: quantity on the x axis.
        by: key of the recipes by which runs are grouped; None: each run alone.
        groups: the groups, in the order of the runs.
        differing: every other key in which the runs differ, with its values.
    """

    stage: str
    metric: str
    axis: Axis
    by: str | None
    groups: list[Group]
    differing: dict[str, list[Any]]


def compare(
    runs: Sequence[History],
    *,
    by: str | None = None,
    axis: Axis = "steps",
    metric: str | None = None,
    stage: str | None = None,
) -> Comparison:
    """Group runs, and average the curves of each group.

    Args:
        runs: at least one run.
        by: dotted key of the recipe.
        axis: quantity on the x axis.
        metric: name in metrics.jsonl; default: the first of `HEADLINES` that all runs have.
        stage: name of the stage; default: the last one that all runs have.

    Raises:
        UsageError: a run lacks the key, the stage or the metric.
    """
    runs = distinct(runs)
    stage = _stage(runs, stage)
    metric = _metric(runs, stage, metric)
    grouped: dict[str, list[History]] = {}
    for run in runs:
        if by is not None and by not in run.keys:
            raise UsageError(f"--by {by}: {run.name} has no such key. {_near(by, run.keys)}")
        grouped.setdefault(run.name if by is None else _text(run.keys[by]), []).append(run)
    groups = []
    for label, members in grouped.items():
        curves = [curve(run, stage, metric, axis) for run in members]
        groups.append(Group(label, members, curves, band(curves)))
    return Comparison(stage, metric, axis, by, groups, differing(runs, [by] if by else []))


def differing(runs: Sequence[History], but: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Keys whose values differ between runs, without the keys in `but`, seeds and names."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    values_by_key = {}
    for key in keys:
        if key in (*IGNORED_KEYS, *but):
            continue
        values = {_text(run.keys.get(key)): run.keys.get(key) for run in runs}
        if len(values) > 1 and {} not in values.values():
            values_by_key[key] = list(values.values())
    return values_by_key


def _stage(runs: Sequence[History], requested: str | None) -> str:
    """The stage to compare: the requested one, or the last that all runs share."""
    shared = [name for name in runs[0].kinds if all(run.lines(name) for run in runs)]
    if requested is not None and requested not in shared:
        raise UsageError(
            f"--stage {requested}: not all runs have it. They share: {', '.join(shared) or 'none'}."
        )
    if not shared:
        raise UsageError(f"{', '.join(run.name for run in runs)}: they share no stage that has begun.")
    return requested or shared[-1]


def _metric(runs: Sequence[History], stage: str, requested: str | None) -> str:
    """The metric to compare: the requested one, or the first headline that all runs share."""
    shared = set.intersection(*(set(run.last(stage)) for run in runs))
    if requested is not None:
        if requested not in shared:
            raise UsageError(f"--y {requested}: not all runs have it in {stage}. {_near(requested, shared)}")
        return requested
    for name in (*(h.name for h in HEADLINES), *sorted(shared)):
        if name in shared:
            return name
    raise UsageError(f"the runs share no metric in {stage}.")


def _near(word: str, known: Mapping[str, Any] | set[str]) -> str:
    """A hint with the most similar names."""
    import difflib

    near = difflib.get_close_matches(word, sorted(known), n=3, cutoff=0.4)
    return f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(sorted(known)[:20])}."


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def as_csv(comparison: Comparison) -> str:
    """The groups' curves as CSV: group, number of runs, x, mean, low, high."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([comparison.by or "run", "runs", comparison.axis, comparison.metric, "low", "high"])
    for group in comparison.groups:
        band = group.band
        for row in zip(band.x, band.mean, band.low, band.high, strict=True):
            writer.writerow([group.label, band.runs, *(f"{value:.6g}" for value in row)])
    return out.getvalue()
