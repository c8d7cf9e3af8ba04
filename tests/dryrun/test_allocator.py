"""The allocator of a dry run: torch's rules for expandable segments."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rlhf_peft.dryrun.allocator import BLOCK, LARGE_PAGE, MIB, SMALL_PAGE, Allocator


def test_small_and_large_blocks_come_from_ranges_of_their_own():
    allocator = Allocator()
    allocator.allocate(1)
    assert (allocator.allocated, allocator.reserved) == (BLOCK, SMALL_PAGE)
    allocator.allocate(MIB + 1)
    assert (allocator.allocated, allocator.reserved) == (2 * BLOCK + MIB, SMALL_PAGE + LARGE_PAGE)


def test_what_was_freed_is_used_again():
    allocator = Allocator()
    blocks = [allocator.allocate(4 * MIB) for _ in range(5)]
    assert allocator.reserved == LARGE_PAGE
    allocator.free(blocks[1])
    allocator.free(blocks[3])
    # Neither hole has room for it, and the range grows; two that are next to each other are one.
    allocator.allocate(8 * MIB)
    assert allocator.reserved == 2 * LARGE_PAGE
    allocator.free(blocks[2])
    allocator.allocate(12 * MIB)
    assert allocator.reserved == 2 * LARGE_PAGE and allocator.allocated == 28 * MIB


def test_the_smallest_free_block_that_is_large_enough_is_taken():
    allocator = Allocator()
    sizes = [8, 2, 4, 2, 2]
    blocks = [allocator.allocate(size * MIB) for size in sizes]
    allocator.free(blocks[0])
    allocator.free(blocks[2])
    assert allocator.allocate(4 * MIB) == blocks[2]


def test_pages_that_no_block_touches_are_given_back():
    allocator = Allocator()
    blocks = [allocator.allocate(20 * MIB) for _ in range(3)]
    allocator.free(blocks[1])
    assert allocator.reserved == 3 * LARGE_PAGE
    allocator.release()
    assert allocator.reserved == 2 * LARGE_PAGE
    allocator.allocate(10 * MIB)  # The page comes back.
    assert allocator.reserved == 3 * LARGE_PAGE


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30 * MIB)), max_size=60))
def test_blocks_never_overlap_and_are_inside_what_is_reserved(steps):
    allocator, held = Allocator(), []
    for frees, size in steps:
        if frees and held:
            allocator.free(held.pop(size % len(held))[0])
        else:
            held.append((allocator.allocate(size), -(-size // BLOCK) * BLOCK))
        assert allocator.allocated == sum(size for _, size in held) <= allocator.reserved
    for part in {id(handle[0]): handle[0] for handle, _ in held}.values():
        places = sorted((handle[1], size) for handle, size in held if handle[0] is part)
        assert all(a + size <= b for (a, size), (b, _) in pairwise(places))
        assert not places or places[-1][0] + places[-1][1] <= part.end
    for handle, _ in held:
        allocator.free(handle)
    allocator.release()
    assert allocator.allocated == allocator.reserved == 0
