"""Runs as they were written: their recipe, figures and samples, for tables, comparisons and reports."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from ..atomic import remove_leftovers
from ..bounded_read import read_small
from ..errors import RunFolderError, UsageError
from ..flatten import recipe_keys
from .clock import known_time
from .folder import OURS, RECIPE
from .lock import FILE as LOCK
from .lock import lock, status_of
from .manifest import MOST_BYTES, is_run, read_manifest
from .read import read_metrics, read_samples
from .safe_paths import remove


@dataclass(frozen=True)
class History:
    """What a run has left behind.

    Attributes:
        path: its folder.
        manifest: as it was read.
        label: what it is called where its folder's name is not enough.
    """

    path: Path
    manifest: Mapping[str, Any]
    label: str | None = None

    @classmethod
    def of(cls, path: Path) -> History:
        """Of a run folder.

        Raises:
            RunFolderError: it is none.
        """
        return cls(path, read_manifest(path))

    @property
    def name(self) -> str:
        """Of the run."""
        return self.label or self.path.resolve().name

    @property
    def status(self) -> str:
        """running, done, failed, stopped or killed."""
        return status_of(self.path, self.manifest)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe as plain data.

        Raises:
            RunFolderError: it cannot be read.
        """
        path = self.path / RECIPE
        try:
            recipe = yaml.safe_load(read_small(path, MOST_BYTES).decode("utf-8"))
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            raise RunFolderError(f"{path}: cannot be read: {error}") from error
        if not isinstance(recipe, dict) or not isinstance(recipe.get("stages"), list):
            raise RunFolderError(f"{path}: not a recipe")
        return recipe

    @cached_property
    def keys(self) -> dict[str, Any]:
        """Dotted key to value of every leaf of the recipe; stages and rewards are named, as on the command line."""
        return recipe_keys(self.recipe)

    @property
    def kinds(self) -> dict[str, str]:
        """Stage name to its kind, in order."""
        return {str(stage["name"]): str(stage["stage"]) for stage in self.recipe["stages"]}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_metrics(self.path)

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The lines of samples.jsonl."""
        return read_samples(self.path)

    def lines(self, stage: str) -> list[dict[str, Any]]:
        """The lines of one stage."""
        return [line for line in self.metrics if line.get("stage") == stage]

    def last(self, stage: str) -> dict[str, float]:
        """The last value of each figure of a stage that is a number."""
        found: dict[str, float] = {}
        for line in self.lines(stage):
            found |= {k: v for k, v in line.items() if isinstance(v, int | float) and not math.isnan(v)}
        return {key: value for key, value in found.items() if key not in ("step", "time")}

    @property
    def started(self) -> float | None:
        """When it was begun, in seconds since 1970; None: unknown."""
        return known_time(self.manifest.get("started"))

    @property
    def seconds(self) -> float | None:
        """That it has been running, without those between an interruption and its resumption; None: unknown."""
        told = (*(line.get("time") for line in self.metrics), self.manifest.get("finished"))
        known = sorted(t for value in (self.started, *told) if (t := known_time(value)) is not None)
        if self.started is None or len(known) < 2:
            return None
        return sum(self.elapsed(before, after) for before, after in pairwise(known))

    def elapsed(self, before: float, after: float) -> float:
        """Seconds between two lines, without those in which the run was not running."""
        resumed = (t for value in self.manifest.get("resumed", []) if (t := known_time(value)) is not None)
        return max(0.0, after - max((t for t in resumed if before < t < after), default=before))


def distinct(runs: Sequence[History]) -> list[History]:
    """The runs, those that have the same name called by their paths.

    Raises:
        UsageError: one is there twice.
    """
    places = Counter(run.path.resolve() for run in runs)
    for place, count in places.items():
        if count > 1:
            raise UsageError(f"{place}: is named {count} times. Name each run once.")
    names = Counter(run.name for run in runs)
    return [run if names[run.name] == 1 else replace(run, label=run.path.as_posix()) for run in runs]


def histories(folder: Path) -> list[History]:
    """The runs in an output folder, the oldest first."""
    found = [History.of(path.parent) for path in folder.glob("*/manifest.json") if is_run(path.parent)]
    return sorted(found, key=lambda run: (run.started or 0.0, run.name))


def remove_run(path: Path) -> None:
    """Remove what a run has made; files that it has not made stay, and so does their folder.

    Raises:
        RunFolderError: it is no run, or another process writes it.
    """
    read_manifest(path)
    if path.is_symlink():
        raise RunFolderError(f"{path}: a link; remove what it leads to, or the link, yourself.")
    held = lock(path)
    try:
        remove_leftovers(path)
        for name in OURS:
            remove(path / name)
    finally:
        held.release(force=True)
    (path / LOCK).unlink(missing_ok=True)
    if not any(path.iterdir()):
        path.rmdir()
