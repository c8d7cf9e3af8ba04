"""Peak memory and seconds of a phase, as every contender is measured."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch


def on_gpu() -> bool:
    """Whether a GPU is measured."""
    return torch.cuda.is_available()


def resident() -> int:
    """Bytes now: what torch holds of the GPU, else this process in memory."""
    return int(torch.cuda.memory_reserved()) if on_gpu() else _status("VmRSS")


def peak() -> int:
    """Most bytes since `forget_peak`."""
    return int(torch.cuda.max_memory_reserved()) if on_gpu() else _status("VmHWM")


def forget_peak() -> None:
    """Begin a new peak."""
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def median(values: list[float]) -> float:
    """The middle one, or the mean of the two in the middle."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()

    @property
    def seconds(self) -> float:
        """So far."""
        if on_gpu():
            torch.cuda.synchronize()
        return time.perf_counter() - self._begun


def say(figures: dict[str, Any]) -> None:
    """The last line of a contender's output, read by `__main__`."""
    print(f"FIGURES {json.dumps(figures)}", flush=True)
    sys.stdout.flush()
