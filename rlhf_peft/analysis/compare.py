"""Several runs beside each other: grouped by a key of their recipes, seeds together."""

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

FREE = ("name", "output_dir", "seed", "version")
"""Keys in which runs of one kind differ."""


@dataclass(frozen=True)
class Group:
    """Runs that have one value of the key.

    Attributes:
        label: the value, or the run's name where no key is given.
        runs: that have it.
        curves: of each run.
        band: of all of them.
    """

    label: str
    runs: list[History]
    curves: list[Curve]
    band: Band


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        stage: that is compared.
        figure: that is compared.
        axis: along which.
        by: key of the recipes by which runs are grouped; None: each run alone.
        groups: in the order of the runs.
        differing: every other key in which the runs differ, and the values there are.
    """

    stage: str
    figure: str
    axis: Axis
    by: str | None
    groups: list[Group]
    differing: dict[str, list[Any]]


def compare(
    runs: Sequence[History],
    *,
    by: str | None = None,
    axis: Axis = "steps",
    figure: str | None = None,
    stage: str | None = None,
) -> Comparison:
    """Group runs and average the curves of each group.

    Args:
        runs: at least one.
        by: dotted key of the recipe.
        axis: along which.
        figure: of metrics.jsonl; default: the first of `HEADLINES` that all runs have.
        stage: its name; default: the last one that all runs have.

    Raises:
        UsageError: a run lacks the key, the stage or the figure.
    """
    runs = distinct(runs)
    stage = _stage(runs, stage)
    figure = _figure(runs, stage, figure)
    grouped: dict[str, list[History]] = {}
    for run in runs:
        if by is not None and by not in run.keys:
            raise UsageError(f"--by {by}: {run.name} has no such key. {_near(by, run.keys)}")
        grouped.setdefault(run.name if by is None else _text(run.keys[by]), []).append(run)
    groups = []
    for label, members in grouped.items():
        curves = [curve(run, stage, figure, axis) for run in members]
        groups.append(Group(label, members, curves, band(curves)))
    return Comparison(stage, figure, axis, by, groups, differing(runs, [by] if by else []))


def differing(runs: Sequence[History], but: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Keys whose values differ between runs, but those that are named, seeds and names."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    found = {}
    for key in keys:
        if key in (*FREE, *but):
            continue
        values = {_text(run.keys.get(key)): run.keys.get(key) for run in runs}
        if len(values) > 1 and {} not in values.values():
            found[key] = list(values.values())
    return found


def _stage(runs: Sequence[History], wanted: str | None) -> str:
    shared = [name for name in runs[0].kinds if all(run.lines(name) for run in runs)]
    if wanted is not None and wanted not in shared:
        raise UsageError(
            f"--stage {wanted}: not all runs have it. They share: {', '.join(shared) or 'none'}."
        )
    if not shared:
        raise UsageError(f"{', '.join(run.name for run in runs)}: they share no stage that has begun.")
    return wanted or shared[-1]


def _figure(runs: Sequence[History], stage: str, wanted: str | None) -> str:
    shared = set.intersection(*(set(run.last(stage)) for run in runs))
    if wanted is not None:
        if wanted not in shared:
            raise UsageError(f"--y {wanted}: not all runs have it in {stage}. {_near(wanted, shared)}")
        return wanted
    for name in (*(h.name for h in HEADLINES), *sorted(shared)):
        if name in shared:
            return name
    raise UsageError(f"the runs share no figure in {stage}.")


def _near(word: str, known: Mapping[str, Any] | set[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, sorted(known), n=3, cutoff=0.4)
    return f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(sorted(known)[:20])}."


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def as_csv(found: Comparison) -> str:
    """The groups' curves as CSV: group, runs, axis, mean, low, high."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([found.by or "run", "runs", found.axis, found.figure, "low", "high"])
    for group in found.groups:
        part = group.band
        for row in zip(part.x, part.mean, part.low, part.high, strict=True):
            writer.writerow([group.label, part.runs, *(f"{value:.6g}" for value in row)])
    return out.getvalue()
