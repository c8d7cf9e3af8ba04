"""Memory that was freed, given back: between phases that use it in different pieces."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """The C library's `malloc_trim`, where it has one (glibc)."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: Callable[[int], int] = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None
    return found


def give_back() -> None:
    """Return freed memory of the CPU's allocator to the system.

    Decoding, scoring and updating allocate in different sizes; what one has freed lies in pieces that the next cannot
    use, and the peak would be their sum.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
