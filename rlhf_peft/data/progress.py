"""Reports the progress of long passes over rows to a callback, once a pass takes longer than a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
ProgressCallback = Callable[[str, int, int | None], None]
"""Called with a description of the pass, the number of rows done, and the total number (None if not known)."""

PATIENCE = 3.0
"""Seconds after which a pass counts as long and is reported."""
EVERY = 0.2
"""Seconds between two reports."""
ROWS = 100
"""Number of rows between two looks at the clock."""

_callback: ContextVar[ProgressCallback | None] = ContextVar("watch", default=None)


@contextmanager
def progress_reports(callback: ProgressCallback | None) -> Iterator[None]:
    """Report passes over rows inside this context to `callback`; None reports to nobody."""
    token = _callback.set(callback)
    try:
        yield
    finally:
        _callback.reset(token)


def with_progress(rows: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the rows, and report how many of them have been taken.

    Args:
        rows: rows of any kind.
        what: description of the pass, such as "encoding rows".
        total: number of rows; None if not known.
    """
    callback, last, reported = _callback.get(), time.monotonic() + PATIENCE - EVERY, False
    done = 0
    for done, row in enumerate(rows, start=1):
        yield row
        if callback is not None and done % ROWS == 0 and time.monotonic() - last >= EVERY:
            callback(what, done, total)
            last, reported = time.monotonic(), True
    if callback is not None and reported:
        callback(what, done, done)
