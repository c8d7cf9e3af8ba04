"""Sends the metrics of a run to TensorBoard, Weights & Biases, trackio or MLflow, through accelerate's trackers.

A recipe's `tracking` names them. A tracker that fails is an observer that fails: this is logged, and after three
failures it is switched off. The run continues, and metrics.jsonl has every metric in any case.
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
"""Folder inside the run's folder with TensorBoard's files, and the ids needed to continue a tracker's run."""
PROJECT = "rlhf-peft"


class RunTrackers:
    """The trackers of one run.

    Metrics are named `<stage>/<metric>`. Their step counts the updates of all stages, so that it never decreases,
    which W&B requires.

    Args:
        run: the run that begins or is resumed.
    """

    def __init__(self, run: RunView) -> None:
        self._folder = run.folder / FOLDER
        self._cpu = run.recipe["device"] == "cpu" or not torch.cuda.is_available()
        self._before, self._stage, self._last = _steps(run.folder / "metrics.jsonl")
        self._trackers = [self._start(name, run) for name in run.recipe["tracking"]]

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an update; those without a number are left out."""
        if stage != self._stage:
            self._before, self._stage, self._last = self._before + self._last, stage, 0
        self._last = max(self._last, step)
        values = {f"{stage}/{name}": float(value) for name, value in metrics.items() if value is not None}
        self._restore_accelerate_state()
        for tracker in self._trackers:
            tracker.log(values, step=self._before + step)

    def finish(self) -> None:
        """Close the trackers."""
        self._restore_accelerate_state()
        for tracker in self._trackers:
            tracker.finish()

    def _restore_accelerate_state(self) -> None:
        """Restore accelerate's process state, which trackers read, and which a trainer clears at its end."""
        from accelerate import PartialState

        PartialState(cpu=self._cpu)

    def _start(self, name: str, run: RunView) -> Any:
        """Start a tracker, or continue its earlier run."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self._restore_accelerate_state()
        self._folder.mkdir(exist_ok=True)
        id_file = self._folder / f"{name}.json"
        earlier = json.loads(id_file.read_text(encoding="utf-8")) if id_file.is_file() else {}
        tracker = LOGGER_TYPE_TO_CLASS[name](*self._place(name), **self._options(name, run.name, earlier))
        tracker.start()
        if not earlier:
            # The recipe in the folder holds no credentials.
            recipe = yaml.safe_load((run.folder / "recipe.yaml").read_text(encoding="utf-8"))
            tracker.store_init_configuration(
                {key: _plain(value) for key, value in recipe_keys(recipe).items()}
            )
        write_text(id_file, json.dumps(_identity(name, tracker)))
        return tracker

    def _place(self, name: str) -> tuple[str, ...]:
        """Positional arguments of a tracker: TensorBoard has a folder, the others a project."""
        return (name, str(self._folder)) if name == "tensorboard" else (PROJECT,)

    def _options(self, name: str, run: str, earlier: Mapping[str, str]) -> dict[str, Any]:
        """Keyword arguments of a tracker, for a new run or for the earlier one."""
        if name == "tensorboard":
            # Steps of an interrupted run after its checkpoint are hidden.
            return {"purge_step": self._before + self._last + 1} if earlier else {}
        if name == "mlflow":
            return {"run_name": run, **earlier}
        if name == "wandb":
            again = {"id": earlier["run_id"], "resume": "allow"} if earlier else {}
            return {"name": run, **again}
        return {"name": run, "resume": "allow" if earlier else "never"}


def _steps(metrics: Path) -> tuple[int, str | None, int]:
    """Number of updates of the stages before the last one, name of the last stage, and its number of updates so far."""
    before, stage, last = 0, None, 0
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    for row in map(json.loads, lines):
        if row["stage"] != stage:
            before, stage, last = before + last, row["stage"], 0
        last = max(last, row["step"])
    return before, stage, last


def _identity(name: str, tracker: Any) -> dict[str, str]:
    """The id by which the tracker's run is continued."""
    if name == "mlflow":
        return {"run_id": tracker.tracker.info.run_id}
    if name == "wandb":
        return {"run_id": str(tracker.tracker.id)}
    return {"run": tracker.run_name}


def _plain(value: Any) -> str | int | float | bool:
    """A value in a type that all trackers accept."""
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)


RUNS: dict[Path, RunTrackers] = {}
"""The trackers of each active run, by its folder."""


@hookimpl
def rlhf_peft_run_start(run: RunView) -> None:
    """Start the trackers that the recipe names."""
    if run.recipe.get("tracking"):
        RUNS[run.folder] = RunTrackers(run)


@hookimpl
def rlhf_peft_step_end(run: RunView, stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Log the metrics of the step."""
    if run.folder in RUNS:
        RUNS[run.folder].log(stage, step, metrics)


@hookimpl
def rlhf_peft_run_end(run: RunView) -> None:
    """Close the trackers."""
    if run.folder in RUNS:
        RUNS.pop(run.folder).finish()
