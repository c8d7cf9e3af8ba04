"""A few steps of a recipe on this machine: seconds, tokens and memory of each phase.

The RL stage is run where there is one, else the recipe's last stage, in a temporary folder. Evaluation is left out.
Roles that an earlier stage would have trained are there untrained: they cost the same.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..api import load_base
from ..errors import UsageError
from ..recipe import PreferenceStage, Recipe, RewardModelStage, RlStage, SftStage
from ..registry import Registry
from ..runs import RunFolder
from ..stages import Context, Reporter, runner
from .peaks import Peaks

AnyStage = SftStage | PreferenceStage | RewardModelStage | RlStage


@dataclass(slots=True)
class Phase:
    """One phase of a step: medians over the steps but the first, where there are several.

    Attributes:
        seconds: of one step.
        tokens: per second.
        share: of the step's time, from 0 to 1.
        peak: bytes; None: not known.
    """

    seconds: float
    tokens: float
    share: float
    peak: int | None


@dataclass(slots=True)
class Bench:
    """The measurements of a benchmark.

    Attributes:
        stage: its name.
        steps: how many were run.
        seconds: of one step, the median.
        loaded: bytes once the model was loaded.
        phases: name to measurements.
        notes: what differs from a real run.
        device: in words.
        exact: whether the memory is measured as a peak, and not at the end of a phase.
    """

    stage: str
    steps: int
    seconds: float
    loaded: int
    phases: dict[str, Phase]
    notes: list[str] = field(default_factory=list)
    device: str = "cpu"
    exact: bool = True


class _StepRecorder:
    """A reporter that records the metrics and the seconds of each step, and passes every call on."""

    def __init__(self, inner: Reporter) -> None:
        self.inner, self.begun = inner, time.perf_counter()
        self.metrics: list[dict[str, float]] = []
        self.times: list[float] = []

    def stage(self, name: str, total: int) -> None:
        self.begun = time.perf_counter()
        self.inner.stage(name, total)

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        now = time.perf_counter()
        if step > 0:
            self.metrics.append(dict(metrics))
            self.times.append(now - self.begun)
        self.begun = now
        self.inner.step(stage, step, metrics)

    def rows(self, what: str, done: int, total: int | None) -> None:
        self.inner.rows(what, done, total)

    def say(self, text: str) -> None:
        self.inner.say(text)

    def close(self) -> None:
        self.inner.close()


def bench(
    recipe: Recipe, registry: Registry, reporter: Reporter, *, steps: int = 3, trust_remote_code: bool = False
) -> Bench:
    """Run a few steps of the RL stage, or of the last one, and measure them.

    Args:
        recipe: checked.
        registry: with its plugins.
        reporter: shows the progress.
        steps: how many.
        trust_remote_code: run code from the model's repository.

    Raises:
        UsageError: the recipe, the data or the model cannot be used here.
    """
    # 1. One stage, in a folder of its own.
    stage = chosen(recipe)
    short = stage.model_copy(update={"max_steps": steps, "eval": type(stage.eval)()})
    recorded = _StepRecorder(reporter)
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe.model_copy(update={"stages": [short], "output_dir": folder})
        # 2. The model, and the roles of earlier stages.
        _import_all(stage.stage)
        peaks = Peaks(torch.device("cpu") if _is_cpu(recipe) else torch.device("cuda"))
        base = load_base(recipe, trust_remote_code=trust_remote_code, registry=registry)
        peaks.lap("loading")
        run = RunFolder.create(Path(folder), recipe.name)
        ctx = Context(recipe, base, registry, run, recorded)
        notes = add_untrained_roles(stage, ctx, registry)
        ctx.seed_everything(stage.name)
        # 3. The steps.
        if isinstance(short, RlStage):
            phases = _run_rl(short, ctx, peaks, recorded)
        else:
            runner(stage.stage)(short, ctx)
            peaks.lap("update")
            phases = _update_phase(recorded, peaks)
    reporter.close()
    return Bench(
        stage=stage.name,
        steps=len(recorded.metrics),
        seconds=_median(
            [f.get("step_time", t) for f, t in zip(recorded.metrics, recorded.times, strict=True)]
        ),
        loaded=peaks.bytes["loading"],
        phases=phases,
        notes=notes,
        device=_device_name(base.device),
        exact=peaks.exact,
    )


def chosen(recipe: Recipe) -> AnyStage:
    """The stage that is measured: the first RL stage, else the last stage."""
    return next((s for s in recipe.stages if isinstance(s, RlStage)), recipe.stages[-1])


def _import_all(kind: str) -> None:
    """Import what a stage imports late, so that it does not count as memory of a phase."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401

    runner(kind)


def _is_cpu(recipe: Recipe) -> bool:
    from ..engine.base_spec import resolve_device

    return resolve_device(recipe.device).type != "cuda"


def add_untrained_roles(stage: AnyStage, ctx: Context, registry: Registry) -> list[str]:
    """Add untrained roles where an earlier stage would have trained them; returns a note for each."""
    if not isinstance(stage, RlStage):
        return []
    notes = []
    needs_reward = any(
        "reward" in getattr(registry.entry("rewards", entry.name).factory, "roles", ())
        for entry in stage.rewards
    )
    if needs_reward and "reward" not in stage.init:
        ctx.base.roles.add("reward-0", head=True)
        notes.append("reward-0 is untrained: the reward model stage was left out")
    return notes


def _run_rl(stage: RlStage, ctx: Context, peaks: Peaks, recorded: _StepRecorder) -> dict[str, Phase]:
    """Run the RL stage's steps without evaluation and without saving; returns its phases."""
    from ..stages.rl.loop import train_step
    from ..stages.rl.parts import build, load_roles

    load_roles(stage, ctx.base)
    ctx.base.roles.freeze_reference()
    with ExitStack() as stack:
        parts = build(stage, ctx, stack)
        parts.on_phase = lambda phase: peaks.lap(phase) if phase else peaks.forget()
        recorded.stage(stage.name, parts.steps)
        for step in range(1, parts.steps + 1):
            recorded.step(stage.name, step, train_step(parts, step))
    return _phases(recorded.metrics, peaks)


def _phases(steps: list[dict[str, float]], peaks: Peaks) -> dict[str, Phase]:
    step_seconds = _median([step["step_time"] for step in steps])
    phases = {}
    for name in ("rollout", "scoring", "update"):
        seconds = _median([step[f"time/{name}"] for step in steps])
        tokens = _median([step[f"tokens_per_second/{name}"] for step in steps])
        phases[name] = Phase(seconds, tokens, seconds / step_seconds, peaks.bytes.get(name))
    return phases


def _update_phase(recorded: _StepRecorder, peaks: Peaks) -> dict[str, Phase]:
    """The one phase of a stage that only updates; its metric `num_tokens` counts the tokens read so far."""
    seconds = _median(recorded.times)
    read = [metrics.get("num_tokens", 0.0) for metrics in recorded.metrics]
    each = [b - a for a, b in zip([0.0, *read], read, strict=False)]
    return {"update": Phase(seconds, _median(each) / seconds, 1.0, peaks.bytes["update"])}


def _median(values: list[float]) -> float:
    """The median of all values but the first, which warms up, where there are several.

    Raises:
        UsageError: no step was made.
    """
    if not values:
        raise UsageError("bench: the stage made no step; its dataset has too few rows for one update.")
    return statistics.median(values[1:] or values)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type}, {torch.get_num_threads()} threads"
