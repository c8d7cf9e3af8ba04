"""Numbers on a device that are read together, so that the host waits once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class LaterReads:
    """Numbers that stay on the device until all of them are read at once.

    Each read makes the host wait for the device, and the device then waits for the host's next kernel.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, Callable[[list[float]], None]]] = []

    def add(self, values: Tensor, use: Callable[[list[float]], None]) -> None:
        """Note some numbers.

        Args:
            values: of any shape and dtype.
            use: is called with them, in the order in which they were noted, when they are read.
        """
        self._pending.append((values.detach().flatten(), use))

    def read(self) -> None:
        """Read all that was noted since the last time."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        numbers = iter(torch.cat([values.double() for values, _ in pending]).tolist())
        for values, use in pending:
            use([next(numbers) for _ in range(len(values))])
