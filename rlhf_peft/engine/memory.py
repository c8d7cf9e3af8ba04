"""How much memory is used: a cap on a GPU, and freed memory given back on the CPU."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

import torch


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """The C library's `malloc_trim`, where it has one (glibc)."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        malloc_trim: Callable[[int], int] = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None
    return malloc_trim


def reserve_of(total: int) -> int:
    """Bytes of so many that are left alone, 5 %: pieces too small to use, and what else is running."""
    return total // 20


def room_for_states(total: int) -> int:
    """Bytes of a card with so many, 2 %, for hidden states that are used again and again; more are kept on the CPU."""
    return total // 50


def states_fit(size: int, device: torch.device) -> bool:
    """Whether hidden states of so many bytes stay on a card, instead of being copied there whenever they are used."""
    return device.type == "cuda" and size <= room_for_states(torch.cuda.mem_get_info(device)[1])


def cap(device: torch.device) -> None:
    """Let torch take no more of a GPU than is free now, less the reserve.

    Where a driver spills into the system's memory instead of failing (Windows), a run that is too large would go on, a
    hundred times slower; with the cap it fails, and says so. On the CPU there is none.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        share = (free + reserved - reserve_of(free)) / total
        before = torch.cuda.get_per_process_memory_fraction(device)
        torch.cuda.set_per_process_memory_fraction(min(share, before), device)


def give_back() -> None:
    """Return freed memory of the CPU's allocator to the system.

    Decoding, scoring and updating allocate in different sizes; what one has freed lies in pieces that the next cannot
    use, and the peak would be their sum.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
