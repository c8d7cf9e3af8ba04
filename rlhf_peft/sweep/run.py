"""Runs the cells of a sweep one after the other; finished cells are skipped, and stages that cells share run once.

<output_dir>/<name>-<cell>/            one complete run for each cell, as if it had been run alone
<output_dir>/<name>-shared-<hash>/     the stages with which several cells begin
<output_dir>/<name>-sweep.json         every cell: its values, status, last metrics, seconds
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
from ..runs.headlines import ranked
from ..runs.layout import without_credentials
from ..runs.manifest import is_run
from .grid import Cell, beginning, prefix, shared_stages


@dataclass
class Outcome:
    """The outcome of a cell.

    Attributes:
        name: of its run folder.
        values: swept key to value.
        status: `done` (was run now), `kept` (was done before), `failed`, or `waiting`.
        metrics: the last values of the most important metrics of each stage, by name.
        seconds: of the run, shared stages not counted.
        error: why it failed.
        traceback: of an unexpected error.
        shared: name of the run whose stages it began with.
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
    """A sweep that is being run.

    Attributes:
        name: of the recipe.
        cells: all cells, checked.
        overwrite: run finished cells again.
        run: `api.run` with everything but the recipe, `overwrite` and `begun_by` given.
        report: is called with a line of text for each cell.
    """

    name: str
    cells: Sequence[Cell]
    overwrite: bool
    run: Callable[..., Any]
    report: Callable[[str], None]

    def __post_init__(self) -> None:
        self.outcomes = [Outcome(cell.name, cell.values) for cell in self.cells]
        self.counts = shared_stages([cell.recipe for cell in self.cells])
        self.fresh: set[str] = set()
        self.broken: dict[str, str] = {}

    @property
    def file(self) -> Path:
        """The JSON file with the outcomes."""
        return Path(self.cells[0].recipe.output_dir) / f"{self.name}-sweep.json"

    def __call__(self) -> list[Outcome]:
        """Run the cells that are not done; a cell that fails does not stop the others.

        Raises:
            UsageError: a folder is in the way, or the recipe, data or model cannot be used.
        """
        for cell in self.cells:
            if not self.is_done(cell.recipe):
                _check_room(cell.recipe, self.overwrite)
        for number, (cell, outcome) in enumerate(zip(self.cells, self.outcomes, strict=True), start=1):
            self.report(f"cell {number}/{len(self.cells)}: {cell.name}")
            self._cell(cell, outcome)
            self._write()
        return self.outcomes

    def is_done(self, recipe: Recipe) -> bool:
        """Whether exactly this recipe has been run to its end, before or in this sweep."""
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
            start = time.perf_counter()
            outcome.error = self._attempt(cell.recipe, self._shared(cell.recipe), outcome)
            outcome.seconds = time.perf_counter() - start
            outcome.status = "failed" if outcome.error else "done"
        if outcome.status != "failed":
            outcome.metrics = final_metrics(cell.recipe.run_folder)

    def _shared(self, recipe: Recipe, sharers: int = 1) -> Recipe | None:
        """The stages that this and other cells begin with, as a recipe; None: there are none."""
        first_stages = beginning(recipe, self.counts, sharers)
        if first_stages is None:
            return None
        return first_stages.model_copy(
            update={"name": f"{self.name}-shared-{prefix(recipe, len(first_stages.stages))}"}
        )

    def _attempt(self, recipe: Recipe, shared: Recipe | None, outcome: Outcome | None = None) -> str:
        """Run a recipe after its shared stages; returns the error message, or an empty text."""
        if shared is not None:
            error = self._begin(shared)
            if error:
                return error
            if outcome is not None:
                outcome.shared = shared.name
        try:
            overwrite = is_run(recipe.run_folder)
            shared_folder = shared.run_folder if shared is not None else None
            self.run(recipe, overwrite=overwrite, begun_by=shared_folder)
        except UsageError:
            raise
        except Exception as error:  # of a plugin, the data or the device: other cells may succeed
            message = " ".join(str(error).split()) or type(error).__name__
            self.report(f"failed: {recipe.name}: {message}")
            if outcome is not None and not isinstance(error, RlhfPeftError):
                outcome.traceback = traceback.format_exc()
            return message
        finally:
            _free()
        self.fresh.add(recipe.name)
        return ""

    def _begin(self, shared: Recipe) -> str:
        """Run shared stages unless they are done; returns the error message, or an empty text.

        They in turn begin with the stages that still more cells share.
        """
        if shared.name in self.broken:
            return self.broken[shared.name]
        if self.is_done(shared):
            return ""
        stages = ", ".join(stage.name for stage in shared.stages)
        self.report(f"shared by several cells: {stages} ({shared.name})")
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
    """Free the last cell's model before the next one is loaded: only the garbage collector frees reference cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _same(recipe: Recipe) -> bool:
    """Whether the run in the recipe's folder has exactly this recipe."""
    file = recipe.run_folder / "recipe.yaml"
    return file.is_file() and file.read_text(encoding="utf-8") == without_credentials(dump(recipe))


def _check_room(recipe: Recipe, overwrite: bool) -> None:
    """Refuse, before anything is run, a folder in which the cell cannot be run.

    An unfinished run of the same recipe may be there.

    Raises:
        RunFolderError: a run of another recipe is there, or files that are not a run's.
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
    report: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> list[Outcome]:
    """Run the cells of a sweep; see `Sweep`.

    Args:
        name: of the recipe.
        cells: from `make_cells`.
        overwrite: run finished cells again.
        report: is called with a line of text for each cell.
        options: for every `api.run`; `reporter` is a function that makes one.

    Raises:
        UsageError: a folder is in the way, or the recipe, data or model cannot be used.
    """
    make_reporter = options.pop("reporter", api.NullReporter)

    def run(recipe: Recipe, **more: Any) -> Any:
        return api.run(recipe, reporter=make_reporter(), **options, **more)

    return Sweep(name, cells, overwrite, run, report)()
