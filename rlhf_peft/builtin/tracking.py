"""Figures of a run for TensorBoard, Weights & Biases, trackio or MLflow, through accelerate's trackers.

A recipe's `tracking` names them. A tracker that fails is an observer that fails: it is told, and after three times
switched off; the run goes on, and metrics.jsonl has every figure anyway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from rlhf_peft.atomic import write_text
from rlhf_peft.plugin import RunView, hookimpl, recipe_keys

FOLDER = "tracking"
"""In the run's folder: TensorBoard's files, and what is needed to go on with a tracker's run."""
PROJECT = "rlhf-peft"


class Tracked:
    """The trackers of one run.

    Figures are named `<stage>/<figure>`. Their step counts the updates of all stages, so that it never falls, which W&B
    demands.

    Args:
        run: that begins, or is resumed.
    """

    def __init__(self, run: RunView) -> None:
        self._folder = run.folder / FOLDER
        self._cpu = run.recipe["device"] == "cpu" or not torch.cuda.is_available()
        self._before, self._stage, self._last = _steps(run.folder / "metrics.jsonl")
        self._trackers = [self._start(name, run) for name in run.recipe["tracking"]]

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """An update's figures; those that are no number are left out."""
        if stage != self._stage:
            self._before, self._stage, self._last = self._before + self._last, stage, 0
        self._last = max(self._last, step)
        known = {f"{stage}/{name}": float(value) for name, value in metrics.items() if value is not None}
        self._attend()
        for tracker in self._trackers:
            tracker.log(known, step=self._before + step)

    def finish(self) -> None:
        """Close them."""
        self._attend()
        for tracker in self._trackers:
            tracker.finish()

    def _attend(self) -> None:
        """Trackers ask accelerate which process this is; a trainer that is done has taken its answer away."""
        from accelerate import PartialState

        PartialState(cpu=self._cpu)

    def _start(self, name: str, run: RunView) -> Any:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self._attend()
        self._folder.mkdir(exist_ok=True)
        known = self._folder / f"{name}.json"
        earlier = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
        tracker = LOGGER_TYPE_TO_CLASS[name](*self._place(name), **self._options(name, run.name, earlier))
        tracker.start()
        if not earlier:
            # The recipe in the folder holds no credentials.
            recipe = yaml.safe_load((run.folder / "recipe.yaml").read_text(encoding="utf-8"))
            tracker.store_init_configuration(
                {key: _plain(value) for key, value in recipe_keys(recipe).items()}
            )
        write_text(known, json.dumps(_identity(name, tracker)))
        return tracker

    def _place(self, name: str) -> tuple[str, ...]:
        """TensorBoard writes into a folder of that name; the others have a project."""
        return (name, str(self._folder)) if name == "tensorboard" else (PROJECT,)

    def _options(self, name: str, run: str, earlier: Mapping[str, str]) -> dict[str, Any]:
        if name == "tensorboard":
            # Of an interrupted run, what came after its checkpoint is hidden.
            return {"purge_step": self._before + self._last + 1} if earlier else {}
        if name == "mlflow":
            return {"run_name": run, **earlier}
        if name == "wandb":
            again = {"id": earlier["run_id"], "resume": "allow"} if earlier else {}
            return {"name": run, **again}
        return {"name": run, "resume": "allow" if earlier else "never"}


def _steps(metrics: Path) -> tuple[int, str | None, int]:
    """Updates of the stages before the last, the last stage, and its updates, as far as a run has come."""
    before, stage, last = 0, None, 0
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    for row in map(json.loads, lines):
        if row["stage"] != stage:
            before, stage, last = before + last, row["stage"], 0
        last = max(last, row["step"])
    return before, stage, last


def _identity(name: str, tracker: Any) -> dict[str, str]:
    """By what the tracker's run is found again."""
    if name == "mlflow":
        return {"run_id": tracker.tracker.info.run_id}
    if name == "wandb":
        return {"run_id": str(tracker.tracker.id)}
    return {"run": tracker.run_name}


def _plain(value: Any) -> str | int | float | bool:
    """As all trackers take it."""
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)


RUNS: dict[Path, Tracked] = {}
"""Folder of a run to its trackers, while it goes on."""


@hookimpl
def rlhf_peft_run_start(run: RunView) -> None:
    """Start the trackers that the recipe names."""
    if run.recipe.get("tracking"):
        RUNS[run.folder] = Tracked(run)


@hookimpl
def rlhf_peft_step_end(run: RunView, stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Hand the figures on."""
    if run.folder in RUNS:
        RUNS[run.folder].log(stage, step, metrics)


@hookimpl
def rlhf_peft_run_end(run: RunView) -> None:
    """Close the trackers."""
    if run.folder in RUNS:
        RUNS.pop(run.folder).finish()
