from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_peft.data.batch import length_batches, mask_from_lengths, pad_left, pad_right

ROWS = [torch.tensor([1, 2, 3]), torch.tensor([4]), torch.tensor([], dtype=torch.int64)]


def test_padding():
    assert pad_right(ROWS, 0).tolist() == [[1, 2, 3], [4, 0, 0], [0, 0, 0]]
    assert pad_left(ROWS, -1).tolist() == [[1, 2, 3], [-1, -1, 4], [-1, -1, -1]]
    assert pad_right([torch.tensor([0.5]), torch.tensor([1.0, 2.0])], 0.0).dtype == torch.float32
    assert pad_right([torch.tensor([True]), torch.tensor([True, True])], False).tolist() == [
        [True, False],
        [True, True],
    ]
    for pad in (pad_left, pad_right):
        with pytest.raises(ValueError, match="no rows"):
            pad([], 0)


def test_masks_come_from_lengths():
    assert mask_from_lengths([3, 1, 0], 3).int().tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert mask_from_lengths(torch.tensor([3, 1, 0]), 3, left=True).int().tolist() == [
        [1, 1, 1],
        [0, 0, 1],
        [0, 0, 0],
    ]


def test_small_example():
    assert length_batches([5, 2, 9, 2, 4], max_tokens=10) == [[2], [0, 4], [1, 3]]
    assert length_batches([5, 2, 9, 2, 4], max_tokens=1) == [[2], [0], [4], [1], [3]]
    assert length_batches([], max_tokens=10) == []
    with pytest.raises(ValueError, match="at least 1"):
        length_batches([1], max_tokens=0)


LENGTHS = st.lists(st.integers(0, 40), max_size=40)


@given(lengths=LENGTHS, max_tokens=st.integers(1, 200))
def test_laws(lengths, max_tokens):
    batches = length_batches(lengths, max_tokens=max_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(batches)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= max_tokens
    assert batches == length_batches(list(lengths), max_tokens=max_tokens)


@given(lengths=LENGTHS, max_tokens=st.integers(1, 200), data=st.data())
def test_units_stay_together(lengths, max_tokens, data):
    unit = data.draw(st.lists(st.integers(0, 8), min_size=len(lengths), max_size=len(lengths)))
    indices = data.draw(st.lists(st.sampled_from(range(len(lengths))), unique=True)) if lengths else []
    batches = length_batches(lengths, max_tokens=max_tokens, indices=indices, unit=unit)
    assert sorted(row for batch in batches for row in batch) == sorted(indices)
    for number in {unit[row] for row in indices}:
        assert sum(any(unit[row] == number for row in batch) for batch in batches) == 1
    for batch in batches:
        alone = len({unit[row] for row in batch}) == 1
        assert alone or len(batch) * max(lengths[row] for row in batch) <= max_tokens


@given(lengths=LENGTHS, max_tokens=st.integers(1, 200), data=st.data())
def test_groups_are_cut_only_where_they_are_too_large(lengths, max_tokens, data):
    group = data.draw(st.lists(st.integers(0, 8), min_size=len(lengths), max_size=len(lengths)))
    batches = length_batches(lengths, max_tokens=max_tokens, group=group)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= max_tokens
    for number in set(group):
        rows = [row for row in range(len(lengths)) if group[row] == number]
        longest = max(lengths[row] for row in rows)
        parts = [sum(group[row] == number for row in batch) for batch in batches]
        most = max(1, max_tokens // max(1, longest))
        assert sum(map(bool, parts)) == -(-len(rows) // most)


def test_a_group_is_cut_into_even_parts():
    batches = length_batches([10] * 16, max_tokens=50, group=[0] * 8 + [1] * 8)
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
