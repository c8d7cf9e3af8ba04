"""What torch's caching allocator would reserve on a card, computed from the sizes that are allocated and freed.

The rules are those of torch's `CUDACachingAllocator` with `expandable_segments:True`, which this package sets: one
range of addresses for small blocks and one for large ones. A block is the smallest free piece that is large enough;
where there is none, the range grows by whole pages. Pages stay reserved after their blocks are freed.
"""

from __future__ import annotations

from bisect import bisect_left, insort

MIB = 2**20
BLOCK = 512
"""Bytes to which the size of a block is rounded."""
SMALL = MIB
"""Blocks of at most this size come from the range for small blocks."""
SMALL_PAGE, LARGE_PAGE = 2 * MIB, 20 * MIB
"""Bytes by which the two ranges grow."""

Handle = tuple["_Range", int]
"""Where a block is: its range, and its first byte there."""


def rounded(size: int) -> int:
    """Bytes of the block that holds `size` bytes."""
    return -(-size // BLOCK) * BLOCK


class Allocator:
    """Two ranges of addresses.

    Attributes:
        allocated: bytes of the blocks that are in use.
    """

    def __init__(self) -> None:
        self._small, self._large = _Range(SMALL_PAGE), _Range(LARGE_PAGE)
        self.allocated = 0

    @property
    def reserved(self) -> int:
        """Bytes of all pages that are held."""
        return self._small.reserved + self._large.reserved

    def allocate(self, size: int) -> Handle:
        """Give out a block of at least `size` bytes."""
        size = rounded(size)
        part = self._small if size <= SMALL else self._large
        self.allocated += size
        return part, part.allocate(size)

    def free(self, handle: Handle) -> None:
        """Take a block back."""
        part, start = handle
        self.allocated -= part.free(start)

    def release(self) -> None:
        """Give back the pages that no block touches, as `torch.cuda.empty_cache` does."""
        for part in (self._small, self._large):
            part.release()


class _Range:
    """Addresses from 0 to `end`, in blocks that are in use or free; neighbours that are free are one block.

    Args:
        page: bytes by which it grows.
    """

    def __init__(self, page: int) -> None:
        self.page, self.end = page, 0
        self._used: dict[int, int] = {}
        self._free: dict[int, int] = {}  # start to size
        self._ends: dict[int, int] = {}  # end to start, of free blocks
        self._sizes: list[tuple[int, int]] = []  # (size, start) of free blocks, in order
        self._absent: set[int] = set()  # pages that were given back

    @property
    def reserved(self) -> int:
        """Bytes of the pages that are held."""
        return self.end - len(self._absent) * self.page

    def allocate(self, size: int) -> int:
        last = self._ends.get(self.end)
        # A free block at the end can grow, so that torch takes it last.
        at = bisect_left(self._sizes, (size, -1))
        if at < len(self._sizes) and self._sizes[at][1] == last:
            at += 1
        if at < len(self._sizes):
            have, start = self._sizes[at]
        else:
            start = self.end if last is None else last
            have = self.end - start
            if have < size:
                grown = -(-(size - have) // self.page) * self.page
                self._drop(start)
                self.end, have = self.end + grown, have + grown
                self._put(start, have)
        self._drop(start)
        if have > size:
            self._put(start + size, have - size)
        self._used[start] = size
        if self._absent:
            self._absent.difference_update(range(start // self.page, -(-(start + size) // self.page)))
        return start

    def free(self, start: int) -> int:
        """Returns the size of the block."""
        size = freed = self._used.pop(start)
        before = self._ends.get(start)
        if before is not None:
            size += self._free[before]
            self._drop(before)
            start = before
        if start + size in self._free:
            behind = start + size
            size += self._free[behind]
            self._drop(behind)
        self._put(start, size)
        return freed

    def release(self) -> None:
        for start, size in self._free.items():
            self._absent.update(range(-(-start // self.page), (start + size) // self.page))

    def _put(self, start: int, size: int) -> None:
        self._free[start] = size
        self._ends[start + size] = start
        insort(self._sizes, (size, start))

    def _drop(self, start: int) -> None:
        size = self._free.pop(start, None)
        if size is not None:
            del self._ends[start + size]
            self._sizes.pop(bisect_left(self._sizes, (size, start)))
