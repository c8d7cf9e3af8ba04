"""Runs the cells of a sweep one after the other; what is done is not done again, and stages that cells share run once.

<output_dir>/<name>-<cell>/            one run a cell, whole, as if it had been run alone
<output_dir>/<name>-shared-<hash>/     the stages with which several cells begin
<output_dir>/<name>-sweep.json         every cell: its values, status, last figures, seconds
"""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import api
from ..atomic import write_text
from ..errors import RlhfPeftError, RunFolderError, UsageError
from ..recipe import Recipe, dump
from ..runs import RunFolder, read_manifest, read_metrics
from ..runs.folder import without_credentials
from ..runs.headlines import ranked
from ..runs.manifest import is_run
from .grid import Cell, beginning, prefix, shared_stages


@dataclass
class Outcome:
    """What became of a cell.

    Attributes:
        name: of its run folder.
        values: swept key to value.
        status: `done` now, `kept` from before, `failed`, or `waiting`.
        metrics: the last values of the most important metrics of each stage, by name.
        seconds: of the run, shared stages not counted.
        error: why it failed.
        traceback: where an error came from that nobody raised on purpose.
        shared: run whose stages it began with.
    """

    name: str
    values: dict[str, Any]
    status: str = "waiting"
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    traceback: str = ""
    shared: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The outcome as it stands in the sweep's JSON file, where the metrics are called `figures`."""
        return {("figures" if key == "metrics" else key): value for key, value in asdict(self).items()}


@dataclass
class Sweep:
    """A grid on its way.

    Attributes:
        name: of the recipe.
        cells: all of them, checked.
        overwrite: run again what is there.
        run: `api.run` with everything but the recipe, `overwrite` and `begun_by` given.
        say: is told what happens.
    """

    name: str
    cells: Sequence[Cell]
    overwrite: bool
    run: Callable[..., Any]
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.outcomes = [Outcome(cell.name, cell.values) for cell in self.cells]
        self.counts = shared_stages([cell.recipe for cell in self.cells])
        self.fresh: set[str] = set()
        self.broken: dict[str, str] = {}

    @property
    def file(self) -> Path:
        """Where the table is kept."""
        return Path(self.cells[0].recipe.output_dir) / f"{self.name}-sweep.json"

    def __call__(self) -> list[Outcome]:
        """Run what is not done; a cell that fails does not stop the others.

        Raises:
            UsageError: a folder is in the way, or the recipe, data or model cannot be used.
        """
        for cell in self.cells:
            if not self.is_done(cell.recipe):
                _check_room(cell.recipe, self.overwrite)
        for number, (cell, outcome) in enumerate(zip(self.cells, self.outcomes, strict=True), start=1):
            self.say(f"cell {number}/{len(self.cells)}: {cell.name}")
            self._cell(cell, outcome)
            self._write()
        return self.outcomes

    def is_done(self, recipe: Recipe) -> bool:
        """Whether the very same recipe ran to its end before, or just now."""
        if self.overwrite and recipe.name not in self.fresh:
            return False
        return (
            is_run(recipe.run_folder)
            and read_manifest(recipe.run_folder).get("status") == "done"
            and _same(recipe)
        )

    def _cell(self, cell: Cell, outcome: Outcome) -> None:
        if self.is_done(cell.recipe):
            outcome.status = "kept"
        else:
            begun = time.perf_counter()
            outcome.error = self._attempt(cell.recipe, self._shared(cell.recipe), outcome)
            outcome.seconds = time.perf_counter() - begun
            outcome.status = "failed" if outcome.error else "done"
        if outcome.status != "failed":
            outcome.metrics = final_metrics(cell.recipe.run_folder)

    def _shared(self, recipe: Recipe, sharers: int = 1) -> Recipe | None:
        """The stages that this and other cells begin with, as a run of their own."""
        found = beginning(recipe, self.counts, sharers)
        if found is None:
            return None
        return found.model_copy(update={"name": f"{self.name}-shared-{prefix(recipe, len(found.stages))}"})

    def _attempt(self, recipe: Recipe, shared: Recipe | None, outcome: Outcome | None = None) -> str:
        """Run a recipe on what it shares; returns why it failed, or nothing."""
        if shared is not None:
            error = self._begin(shared)
            if error:
                return error
            if outcome is not None:
                outcome.shared = shared.name
        try:
            there = is_run(recipe.run_folder)
            begun = shared.run_folder if shared is not None else None
            self.run(recipe, overwrite=there, begun_by=begun)
        except UsageError:
            raise
        except Exception as error:  # of a plugin, the data, the device: other cells may be well
            message = " ".join(str(error).split()) or type(error).__name__
            self.say(f"failed: {recipe.name}: {message}")
            if outcome is not None and not isinstance(error, RlhfPeftError):
                outcome.traceback = traceback.format_exc()
            return message
        finally:
            _free()
        self.fresh.add(recipe.name)
        return ""

    def _begin(self, shared: Recipe) -> str:
        """Run shared stages unless they are done; themselves on what they share with yet more cells."""
        if shared.name in self.broken:
            return self.broken[shared.name]
        if self.is_done(shared):
            return ""
        stages = ", ".join(stage.name for stage in shared.stages)
        self.say(f"shared by several cells: {stages} ({shared.name})")
        count = self.counts[prefix(shared, len(shared.stages))]
        error = self._attempt(shared, self._shared(shared, count))
        if error:
            self.broken[shared.name] = f"its shared stages failed: {error}"
        return self.broken.get(shared.name, "")

    def _write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        cells = [outcome.as_dict() for outcome in self.outcomes]
        write_text(self.file, json.dumps({"name": self.name, "cells": cells}, indent=2) + "\n")


def _free() -> None:
    """Let go of the last cell's model before the next one is loaded: models are full of cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _same(recipe: Recipe) -> bool:
    """Whether the run that is there has the very same recipe."""
    file = recipe.run_folder / "recipe.yaml"
    return file.is_file() and file.read_text(encoding="utf-8") == without_credentials(dump(recipe))


def _check_room(recipe: Recipe, overwrite: bool) -> None:
    """Say now, not after hours, that a folder is in the way; an unfinished run of this recipe is not.

    Raises:
        RunFolderError: another recipe's run is there, or files that are not a run's.
    """
    folder = recipe.run_folder
    mine = is_run(folder) and _same(recipe)
    if is_run(folder) and not mine and not overwrite:
        raise RunFolderError(
            f"{folder}: holds a run of another recipe. Replace the cells with --overwrite, or set another name=..."
        )
    RunFolder.plan(recipe.output_dir, recipe.name, overwrite=True)


def final_metrics(folder: Path) -> dict[str, float]:
    """The last values of the most important metrics of a run's last stage, by name."""
    rows = read_metrics(folder)
    last: dict[str, float] = {}
    for row in rows:
        if row["stage"] == rows[-1]["stage"]:
            last |= {key: value for key, value in row.items() if isinstance(value, (int, float))}
    return {name: last[name] for name in ranked(last) if last[name] == last[name]}


def sweep(
    name: str,
    cells: Sequence[Cell],
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> list[Outcome]:
    """Run a grid; see `Sweep`.

    Args:
        name: of the recipe.
        cells: from `make_cells`.
        overwrite: run again what is done.
        say: is told what happens.
        options: for every `api.run`; `reporter` is a function that makes one.

    Raises:
        UsageError: nothing can be run as asked.
    """
    make_reporter = options.pop("reporter", api.Silent)

    def run(recipe: Recipe, **more: Any) -> Any:
        return api.run(recipe, reporter=make_reporter(), **options, **more)

    return Sweep(name, cells, overwrite, run, say)()
