"""Measures the peak memory of each phase, on a GPU or on the CPU.

On a GPU: what torch has allocated there. On the CPU: the resident size of the process, less what it was before the
model was loaded; Linux keeps its peak (VmHWM in /proc/self/status), elsewhere the size at the end of a phase is taken.
"""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from ..engine import give_back

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peaks:
    """Peak memory by phase; a phase ends with `lap`.

    Args:
        device: its memory is measured.

    Attributes:
        bytes: phase to its peak in bytes, above what was in use when the object was made.
        exact: whether peaks are known, and not only the memory at the end of each phase.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: dict[str, int] = {}
        self.exact = device.type == "cuda" or (STATUS.is_file() and RESET.exists())
        self._before = 0
        self._before = self._now()
        self.forget()

    def lap(self, phase: str) -> None:
        """End a phase: store its peak under this name, and begin a new one."""
        self.bytes[phase] = max(self.bytes.get(phase, 0), self._peak())
        self.forget()

    def forget(self) -> None:
        """Reset the peak to what is in use now; cached free memory is released first."""
        give_back()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.exact:
            RESET.write_text("5")

    def _now(self) -> int:
        if self.device.type == "cuda":
            return 0
        return int(psutil.Process().memory_info().rss) - self._before

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return _status("VmHWM") - self._before if self.exact else self._now()


def _status(key: str) -> int:
    """A size of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[key].split()[0]) * 1024
