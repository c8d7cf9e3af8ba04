"""How far a long pass over rows is: told to whoever watches, once it takes longer than a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Watch = Callable[[str, int, int | None], None]
"""Is told what is done with the rows, how many are done, and how many there are (None: not known)."""

PATIENCE = 3.0
"""Seconds after which a pass is long."""
EVERY = 0.2
"""Seconds between two reports."""
ROWS = 100
"""Rows between two looks at the clock."""

_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(watch: Watch | None) -> Iterator[None]:
    """Tell a function how far the passes over rows inside are; None: tell nobody."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def shown(rows: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The rows, while it is told how many of them have been taken.

    Args:
        rows: of any kind.
        what: is done with them, in words.
        total: how many there are; None: not known.
    """
    watch, last, told = _watch.get(), time.monotonic() + PATIENCE - EVERY, False
    done = 0
    for done, row in enumerate(rows, start=1):
        yield row
        if watch is not None and done % ROWS == 0 and time.monotonic() - last >= EVERY:
            watch(what, done, total)
            last, told = time.monotonic(), True
    if watch is not None and told:
        watch(what, done, done)
