"""Peak memory of a case, and a cap on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..measure import forget_peak, peak, resident


class Memory:
    """The peak since it was made."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._before = torch.cuda.memory_allocated() if self._cuda else resident()
        forget_peak()

    def figures(self) -> dict[str, int]:
        """Bytes: before, at most allocated, at most reserved; on a CPU of the process."""
        most = torch.cuda.max_memory_allocated() if self._cuda else peak()
        return {"bytes before": self._before, "peak allocated": most, "peak reserved": peak()}


@contextmanager
def capped(device: torch.device, most: int | None) -> Iterator[None]:
    """Torch takes no more of the card than so many bytes."""
    if most is None or device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
