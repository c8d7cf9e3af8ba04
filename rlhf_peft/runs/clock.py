"""The times that a run writes down: they never go back, and a clock that is set anew changes no duration."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import RunFolderError
from .read import read_lines


class RunClock:
    """Seconds since 1970 as the system's clock said when it was made, and from then on by one that nobody sets.

    Args:
        after: the last time that the run has written down; a system's clock that is behind it begins there.
    """

    def __init__(self, after: float = 0.0) -> None:
        self._begun, self._steady = max(time.time(), after), time.monotonic()

    def now(self) -> float:
        """The time."""
        return self._begun + time.monotonic() - self._steady


def known_time(value: Any) -> float | None:
    """A time that was written down; None for anything that is none, or is out of a calendar's range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    try:
        datetime.fromtimestamp(value)
    except (ValueError, OverflowError, OSError):
        return None
    return float(value)


def last_time(manifest: Mapping[str, Any], metrics: Path) -> float:
    """The last time that a run has written down; 0 where there is none.

    Args:
        manifest: of the run.
        metrics: its lines of figures.
    """
    try:
        told = [line.get("time") for line in read_lines(metrics)]
    except RunFolderError:
        told = []
    noted = (manifest.get("started"), manifest.get("finished"), *manifest.get("resumed", []))
    return max((found for value in (*noted, *told) if (found := known_time(value)) is not None), default=0.0)
