"""Progress of a run: one live line for each stage on a terminal, a few plain lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..data.progress import progress_reports
from ..runs.headlines import live
from .terminal import EscapingStream, make_console

LINES_PER_STAGE = 10
ROWS_PER_LINE = 200_000
"""A line is written after this many rows of a file of unknown length."""


def describe(metrics: Mapping[str, float]) -> str:
    """The most important metrics in one line of text."""
    parts = [(h.label, metrics[h.name]) for h in live() if metrics.get(h.name) is not None]
    single_rewards = [
        (key.split("/")[1], metrics[key])
        for key in metrics
        if key.startswith("rewards/") and key.endswith("/mean") and key.count("/") == 2
    ]
    if len(single_rewards) > 1:
        place = next((i for i, (name, _) in enumerate(parts, 1) if name == "reward"), 0)
        parts[place:place] = single_rewards
    return "  ".join(
        f"{name} {value:.0f}" if abs(value) >= 100 else f"{name} {value:.3g}" for name, value in parts
    )


def memory() -> str:
    """Memory in use as text: the peak that torch reserved on the GPU, or else this process's main memory."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GB"
    import psutil

    return f"{psutil.Process().memory_info().rss / 2**30:.1f} GB"


def clock(seconds: float) -> str:
    """A duration as hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlainReporter:
    """Plain lines on stderr, about ten for each stage, so that a log file stays readable."""

    def __init__(self) -> None:
        self._total, self._begun, self._last = 1, time.monotonic(), 0
        self._before: int | None = None
        self._pass, self._last_tenth, self._pass_begun = "", 0, 0.0

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` updates begins."""
        self._total, self._begun, self._last = total, time.monotonic(), 0
        self._before = None
        self.say(f"{name}: {total} updates")

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """An update is done; a line is written after every tenth of the stage."""
        # A stage that is resumed does not begin at 0.
        if self._before is None:
            self._before, self._begun = (step, time.monotonic()) if step == 0 else (step - 1, self._begun)
        tenth = step * LINES_PER_STAGE // max(1, self._total)
        if tenth <= self._last and step not in (0, 1):
            return
        self._last = tenth
        seconds = time.monotonic() - self._begun
        done, rest = step - self._before, self._total - step
        left = f", {clock(seconds / done * rest)} left" if done > 0 and rest > 0 else ""
        self.say(f"  {stage} {step}/{self._total}  {clock(seconds)}{left}  {describe(metrics)}  {memory()}")

    def rows(self, what: str, done: int, total: int | None) -> None:
        """A long pass over rows goes on; a line is written after every tenth of it."""
        if self._pass != what:
            self._pass, self._last_tenth, self._pass_begun = what, 0, time.monotonic()
        tenth = done // ROWS_PER_LINE if total is None else done * LINES_PER_STAGE // max(1, total)
        if tenth > self._last_tenth:
            self._last_tenth = tenth
            of = "" if total is None else f" of {total:,}"
            self.say(f"  {what}: {done:,}{of}  {clock(time.monotonic() - self._pass_begun)}")

    def say(self, text: str) -> None:
        """Print one message."""
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """There is nothing to close."""


class BarReporter:
    """A progress bar for each stage, with the most important metrics and the time left."""

    def __init__(self) -> None:
        console = make_console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[metrics]}", markup=False),
            console=console,
        )
        self._task: TaskID | None = None
        self._passes: dict[str, TaskID] = {}
        self._before = sys.stdout, sys.stderr
        self._progress.start()
        # rich has replaced both streams by its own, which print text above the bars.
        sys.stdout, sys.stderr = EscapingStream(sys.stdout), EscapingStream(sys.stderr)

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` updates begins."""
        self._task = self._progress.add_task(name, total=total, metrics="")

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """An update is done."""
        if self._task is not None:
            if step > 1 and not self._progress.tasks[self._task].completed:
                self._progress.reset(self._task, completed=step - 1)  # a stage that is resumed
            self._progress.update(self._task, completed=step, metrics=f"{describe(metrics)}  {memory()}")

    def rows(self, what: str, done: int, total: int | None) -> None:
        """A long pass over rows goes on; its bar is removed when it is done."""
        if what not in self._passes:
            self._passes[what] = self._progress.add_task(what, total=total, metrics="")
        self._progress.update(self._passes[what], completed=done)
        if done == total:
            self._progress.remove_task(self._passes.pop(what))

    def say(self, text: str) -> None:
        """Print one message above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Remove the bars, and restore the streams."""
        self._progress.stop()
        sys.stdout, sys.stderr = self._before


class QuietReporter(PlainReporter):
    """A reporter that prints nothing."""

    def say(self, text: str) -> None:
        """Print nothing."""


class JsonReporter:
    """A reporter for programs: JSON objects on stderr, one on each line; `event` is stage, step, rows or note."""

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` updates begins."""
        self._write_event(event="stage", stage=name, total=total)

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """An update is done."""
        from ..runs import plain

        self._write_event(event="step", stage=stage, step=step, metrics=plain(metrics))

    def rows(self, what: str, done: int, total: int | None) -> None:
        """A long pass over rows goes on."""
        self._write_event(event="rows", what=what, done=done, total=total)

    def say(self, text: str) -> None:
        """Write one message as an event."""
        self._write_event(event="note", text=text)

    def close(self) -> None:
        """There is nothing to close."""

    def _write_event(self, **event: Any) -> None:
        print(json.dumps(event, ensure_ascii=False), file=sys.stderr, flush=True)


def reporter(*, quiet: bool = False, as_json: bool = False) -> PlainReporter | BarReporter | JsonReporter:
    """The reporter for the options given: silent, JSON lines, bars on a terminal, or plain lines."""
    if quiet:
        return QuietReporter()
    if as_json:
        return JsonReporter()
    return BarReporter() if sys.stderr.isatty() else PlainReporter()


@contextmanager
def row_progress(*, as_json: bool = False) -> Iterator[None]:
    """Show the progress of long passes over rows inside the block; short passes show nothing."""
    reporters: list[PlainReporter | BarReporter | JsonReporter] = []

    def watch(what: str, done: int, total: int | None) -> None:
        if not reporters:
            reporters.append(reporter(as_json=as_json))
        reporters[0].rows(what, done, total)

    try:
        with progress_reports(watch):
            yield
    finally:
        for shown in reporters:
            shown.close()
