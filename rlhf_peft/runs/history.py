"""Runs as they were written: their recipe, metrics and samples, for tables, comparisons and reports."""

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
from .layout import RECIPE, RUN_FILES
from .lock import FILE as LOCK
from .lock import lock, status_of
from .manifest import MOST_BYTES, is_run, read_manifest
from .read import read_metrics, read_samples
from .safe_paths import remove


@dataclass(frozen=True)
class History:
    """A run as its folder has it.

    Attributes:
        path: the run's folder.
        manifest: as it was read.
        label: the run's name where the folder's name is not enough to tell runs apart.
    """

    path: Path
    manifest: Mapping[str, Any]
    label: str | None = None

    @classmethod
    def of(cls, path: Path) -> History:
        """Read the history of a run folder.

        Raises:
            RunFolderError: it is no run folder.
        """
        return cls(path, read_manifest(path))

    @property
    def name(self) -> str:
        """The name of the run, or its label."""
        return self.label or self.path.resolve().name

    @property
    def status(self) -> str:
        """The status: running, done, failed, stopped or killed."""
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
        """The last value of each numeric metric of a stage."""
        values: dict[str, float] = {}
        for line in self.lines(stage):
            values |= {k: v for k, v in line.items() if isinstance(v, int | float) and not math.isnan(v)}
        return {key: value for key, value in values.items() if key not in ("step", "time")}

    @property
    def started(self) -> float | None:
        """When the run began, in seconds since 1970; None: unknown."""
        return known_time(self.manifest.get("started"))

    @property
    def seconds(self) -> float | None:
        """How long the run has been running, without the time between interruptions and resumptions; None: unknown."""
        times = (*(line.get("time") for line in self.metrics), self.manifest.get("finished"))
        known_times = sorted(t for value in (self.started, *times) if (t := known_time(value)) is not None)
        if self.started is None or len(known_times) < 2:
            return None
        return sum(self.elapsed(before, after) for before, after in pairwise(known_times))

    def elapsed(self, before: float, after: float) -> float:
        """Seconds between two times, without the time in which the run was interrupted."""
        resumed = (t for value in self.manifest.get("resumed", []) if (t := known_time(value)) is not None)
        return max(0.0, after - max((t for t in resumed if before < t < after), default=before))


def distinct(runs: Sequence[History]) -> list[History]:
    """The runs with distinct names: runs that have the same name are labelled by their paths.

    Raises:
        UsageError: one run is given twice.
    """
    places = Counter(run.path.resolve() for run in runs)
    for place, count in places.items():
        if count > 1:
            raise UsageError(f"{place}: is named {count} times. Name each run once.")
    names = Counter(run.name for run in runs)
    return [run if names[run.name] == 1 else replace(run, label=run.path.as_posix()) for run in runs]


def histories(folder: Path) -> list[History]:
    """The runs in an output folder, the oldest first."""
    runs = [History.of(path.parent) for path in folder.glob("*/manifest.json") if is_run(path.parent)]
    return sorted(runs, key=lambda run: (run.started or 0.0, run.name))


def remove_run(path: Path) -> None:
    """Remove the files that a run has written; other files stay, and so does the folder then.

    Raises:
        RunFolderError: it is no run, or another process writes it.
    """
    read_manifest(path)
    if path.is_symlink():
        raise RunFolderError(f"{path}: a link; remove what it leads to, or the link, yourself.")
    run_lock = lock(path)
    try:
        remove_leftovers(path)
        for name in RUN_FILES:
            remove(path / name)
    finally:
        run_lock.release(force=True)
    (path / LOCK).unlink(missing_ok=True)
    if not any(path.iterdir()):
        path.rmdir()
