"""The clock of a run: its times never go back, and a change of the system's clock changes no duration."""

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
    """Seconds since 1970: the system's time when the clock was made, plus the monotonic time since then.

    Args:
        after: the last time that the run has written down; the clock does not begin before it.
    """

    def __init__(self, after: float = 0.0) -> None:
        self._begun, self._steady = max(time.time(), after), time.monotonic()

    def now(self) -> float:
        """The time now, in seconds since 1970."""
        return self._begun + time.monotonic() - self._steady


def known_time(value: Any) -> float | None:
    """A time in seconds since 1970 as a float; None for anything that is no time, or out of a calendar's range."""
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
        metrics: its metrics.jsonl.
    """
    try:
        line_times = [line.get("time") for line in read_lines(metrics)]
    except RunFolderError:
        line_times = []
    manifest_times = (manifest.get("started"), manifest.get("finished"), *manifest.get("resumed", []))
    return max(
        (known for value in (*manifest_times, *line_times) if (known := known_time(value)) is not None),
        default=0.0,
    )
