"""Runs the cases one after the other, each with a limit, and writes a JSON line for each as soon as it ends."""

from __future__ import annotations

import collections
import datetime
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import CASES, Case

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "build" / "benchmarks" / "models"
OUT = ROOT / "build" / "benchmarks" / "gpu.jsonl"
STARTING = 120.0
"""Seconds that a process has until it begins its first case: it imports the libraries."""
AS_A_RUN = {
    "GOMP_SPINCOUNT": "3000",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}
"""Environment variables that the command line sets for a run; TRL has them too."""
LEAST = 20.0
"""With fewer seconds left no case is begun."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is run, and how.

    Attributes:
        out: file of the JSON lines; lines are appended.
        device: cuda or cpu.
        shape: full or toy.
        seconds: for all cases together.
        models: folder of the models.
        worker: arguments of Python with which a process of cases begins.
    """

    out: Path
    device: str = "cuda"
    shape: str = "full"
    seconds: float = 1500.0
    models: Path = MODELS
    worker: tuple[str, ...] = ("-m", "tests.benchmarks.gpu.worker")


def chosen(only: str = "", part: int | None = None) -> list[Case]:
    """The cases whose name holds a text, of one part or of all."""
    return [c for c in CASES if only.lower() in c.name.lower() and part in (None, c.part)]


def measure(cases: Sequence[Case], options: Options) -> None:
    """Measure all cases, those that fail included."""
    log = Log(options)
    end = time.monotonic() + options.seconds
    waiting = collections.deque(cases)
    while waiting and end - time.monotonic() > LEAST:
        _in_one_process(waiting, options, log, end)
    for case in waiting:
        log.write(case, 0.0, {"error": "not begun: the time for all cases was over"})


class Log:
    """The file of the JSON lines, and a word on the terminal for each."""

    def __init__(self, options: Options) -> None:
        self._options, self._machine = options, ""
        options.out.parent.mkdir(parents=True, exist_ok=True)

    def machine(self, text: str) -> None:
        """What the cases run on, once."""
        if text != self._machine:
            self._machine = text
            self._line({"machine": json.loads(text), "date": str(datetime.datetime.now(datetime.UTC).date())})

    def write(self, case: Case, seconds: float, found: dict[str, Any]) -> None:
        """What a case measured, or why it did not."""
        where = {"shape": self._options.shape, "device": self._options.device}
        self._line({"case": case.name, "work": case.work, **where, "took": round(seconds, 1), **found})
        said = found.get("error") or ", ".join(
            f"{name} {figure:.4g}"
            for name, figure in found["figures"].items()
            if isinstance(figure, int | float)
        )
        print(f"[{seconds:.0f} s] {case.name}: {said}", flush=True)

    def _line(self, line: dict[str, Any]) -> None:
        with self._options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _in_one_process(waiting: collections.deque[Case], options: Options, log: Log, end: float) -> None:
    """Measure cases until one fails, takes too long, or all are done; those that were begun leave `waiting`."""
    given = {
        "device": options.device,
        "shape": options.shape,
        "models": str(options.models),
        "cases": [{"name": c.name, "work": c.work, "options": c.options} for c in waiting],
    }
    command = [sys.executable, *options.worker, json.dumps(given)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=_surroundings(options),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said: queue.Queue[str | None] = queue.Queue()
    complaints: collections.deque[str] = collections.deque(maxlen=20)
    threads = [
        threading.Thread(target=_read, args=(process.stdout, said.put, lambda: said.put(None)), daemon=True),
        threading.Thread(target=_read, args=(process.stderr, complaints.append, lambda: None), daemon=True),
    ]
    for thread in threads:
        thread.start()
    begun, running = time.monotonic(), False
    try:
        while waiting:
            limit = waiting[0].limit if running else STARTING
            left = min(begun + limit, end) - time.monotonic()
            try:
                line = said.get(timeout=max(0.0, left))
            except queue.Empty:
                over = end - time.monotonic() <= 0
                reason = "the time for all cases was over" if over else f"it took longer than {limit:g} s"
                log.write(
                    waiting.popleft(), time.monotonic() - begun, {"error": reason, "stderr": [*complaints]}
                )
                return
            if line is None:
                threads[1].join(timeout=5)  # It has said why.
                reason = f"the process ended with {process.wait()}"
                log.write(
                    waiting.popleft(), time.monotonic() - begun, {"error": reason, "stderr": [*complaints]}
                )
                return
            word, _, rest = line.partition(" ")
            if word == "MACHINE":
                log.machine(rest)
            elif word == "BEGIN":
                begun, running = time.monotonic(), True
            elif word == "RESULT":
                found = json.loads(rest)
                log.write(waiting.popleft(), time.monotonic() - begun, found)
                begun = time.monotonic()
                if "error" in found:
                    return
    finally:
        process.kill()
        process.wait()
        for thread, stream in zip(threads, (process.stdout, process.stderr), strict=True):
            thread.join(timeout=5)
            if stream is not None and not thread.is_alive():
                stream.close()


def _surroundings(options: Options) -> dict[str, str]:
    """Environment of a worker; on the CPU it sees no card."""
    hidden = {} if options.device.startswith("cuda") else {"CUDA_VISIBLE_DEVICES": ""}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**AS_A_RUN, **os.environ, **offline, **hidden, "PYTHONUNBUFFERED": "1"}


def _read(stream: Any, each: Any, last: Any) -> None:
    for line in stream:
        each(line.rstrip("\n"))
    last()
