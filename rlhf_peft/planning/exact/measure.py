"""Runs the stages of a recipe on a simulated card and prints what each phase took."""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ...api import load_base
from ...dryrun.meter import Card, Counts
from ...dryrun.mode import DryRun
from ...dryrun.process import begin
from ...engine import POLICY
from ...errors import RlhfPeftError
from ...recipe import Recipe, RlStage, load
from ...registry import Registry
from ...runs import RunFolder
from ...stages import Context, runner
from ..bench import add_untrained_roles
from . import made_up


class _StepLaps:
    """A reporter that ends a phase of the meter at each step of a stage, and shows nothing.

    Attributes:
        steps: the counts of each step.
    """

    def __init__(self, run: DryRun) -> None:
        self._run = run
        self.steps: list[Counts] = []

    def stage(self, name: str, total: int) -> None:
        self._run.meter.lap()
        begin_phase(self._run)
        self.steps = []

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        if step > 0:
            self.steps.append(self._run.meter.lap())

    def rows(self, what: str, done: int, total: int | None) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def main(file: str) -> None:
    """Measure the recipes of a request, and print a line for each; then the process ends."""
    request = json.loads(Path(file).read_text(encoding="utf-8"))
    card = Card(**{**request["card"], "capability": tuple(request["card"]["capability"])})
    registry = Registry.load(request["plugin_files"], request["no_plugins"])
    registry.add(made_up, "made_up")
    run = begin(card)
    gc.freeze()  # What was imported is not looked through again.
    for number, each in enumerate(request["recipes"]):
        try:
            recipe = load(each["recipe"], (), plugins=registry)
            with run:
                phases = measured(recipe, registry, run, trained=set(each["trained_before"]))
            print("PHASES", json.dumps([number, phases]), flush=True)
        except Exception as error:  # What stops one recipe does not stop the others.
            if not isinstance(error, RlhfPeftError):
                traceback.print_exc()
            print("FAILED", json.dumps([number, f"{type(error).__name__}: {error}"]), flush=True)
        gc.collect()
    sys.stdout.flush()
    os._exit(0)  # torch before 2.10 cannot join the threads of devices that are not there.


def measured(recipe: Recipe, registry: Registry, run: DryRun, *, trained: set[str]) -> list[dict[str, Any]]:
    """What each phase of each stage took.

    Args:
        recipe: made by `stand_in`.
        registry: with the stand-ins.
        run: in which this is called.
        trained: stages that begin with a policy that was trained before.
    """
    phases = []
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(recipe, registry=registry)
        laps = _StepLaps(run)
        ctx = Context(recipe, base, registry, RunFolder.create(Path(folder), recipe.name), laps)
        is_trained = False

        def is_zero(role: str) -> bool:
            """Weights have no values here, so that it is told which roles were trained."""
            return not is_trained if role == POLICY else True

        base.roles.is_zero = is_zero  # type: ignore[method-assign]
        for stage in recipe.stages:
            is_trained = is_trained or stage.name in trained
            ctx.seed_everything(stage.name)
            if isinstance(stage, RlStage):
                add_untrained_roles(stage, ctx, registry)
                for name, counts in _rl(stage, ctx, run).items():
                    phases.append(_phase(stage.name, name, [counts]))
            else:
                runner(stage.stage)(stage, ctx)
                phases.append(_phase(stage.name, "update", laps.steps))
            run.meter.lap()
            is_trained = is_trained or stage.stage != "reward_model"
    return phases


def _rl(stage: RlStage, ctx: Context, run: DryRun) -> dict[str, Counts]:
    """The phases of a step of an RL stage, and of an evaluation."""
    from ...stages.rl.loop import train_step
    from ...stages.rl.parts import build, load_roles

    load_roles(stage, ctx.base)
    ctx.base.roles.freeze_reference()
    phases: dict[str, Counts] = {}
    with ExitStack() as stack:
        parts = build(stage, ctx, stack)
        epochs = _one_epoch(parts.algorithm)
        _fill_state(parts.updater.optimizer)

        def on_phase(phase: str) -> None:
            counts = run.meter.lap()
            begin_phase(run)
            if phase:
                phases.setdefault(phase, Counts()).add(counts)

        parts.on_phase = on_phase
        train_step(parts, 1)
        phases["update"].repeat(epochs)
        if parts.evaluator is not None:
            run.meter.lap()
            begin_phase(run)
            parts.evaluator.run(1)
            phases["evaluation"] = run.meter.lap()
    return phases


def begin_phase(run: DryRun) -> None:
    """Each phase begins with no memory to spare, so that what it holds is what it needs.

    In life the allocator keeps what an earlier phase has freed until it has no more.
    """
    gc.collect()
    run.meter.release()
    run.meter.reset_peak()


def _one_epoch(algorithm: Any) -> float:
    """Let an algorithm pass over a rollout once, or twice where that is its only second update.

    Returns:
        The factor by which an update of the recipe is longer.
    """
    wanted = algorithm.epochs
    algorithm.epochs = min(wanted, 1 if algorithm.minibatches > 1 else 2)
    return float(wanted / algorithm.epochs)


def _fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer make its state, as its first step does."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _phase(stage: str, name: str, steps: list[Counts]) -> dict[str, Any]:
    """A phase as plain data: the peaks of all its steps, and the rest of the last one."""
    every, last = Counts(), steps[-1]
    for counts in steps:
        every.add(counts)
    return {
        "stage": stage,
        "name": name,
        "peak": every.peak,
        "peaks": [[*place, size] for place, size in every.peaks.items()],
        "reserved": every.reserved,
        "launches": last.launches,
        "reads": sum(last.host_reads.values()),
        "moved": last.moved,
        "flops": last.flops,
        "seconds": last.seconds,
        "kernel_seconds": last.kernel_seconds,
    }
