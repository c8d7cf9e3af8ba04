"""States come back from JSON and tensors as they were."""

import json
import math
import random

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_peft.session.packing import MARK, pack, random_state, set_random_state, unpack

leaves = st.none() | st.booleans() | st.integers() | st.text() | st.floats()
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.just(MARK), inner)
    ),
    max_leaves=20,
)


def back(state):
    packed, tensors = pack(state)
    return unpack(json.loads(json.dumps(packed, allow_nan=False)), tensors)


def alike(one, other):
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


@given(states)
def test_a_state_comes_back(state):
    assert alike(back(state), state)


def test_tensors_are_copies_of_their_own():
    whole = torch.arange(10.0)
    state = {"view": whole[2:4], "same": whole, 3: whole.to(torch.bfloat16)}
    packed, tensors = pack(state)
    whole += 1
    found = unpack(packed, tensors)
    assert found["view"].tolist() == [2, 3] and found["view"].untyped_storage().nbytes() == 8
    assert found[3].dtype == torch.bfloat16 and found["same"].tolist() == list(range(10))


def test_what_is_no_state_is_named():
    with pytest.raises(TypeError, match=r"state\.a\[1\] is a set"):
        pack({"a": [1, {2}]})


def test_random_numbers_go_on():
    def draw():
        return random.random(), float(numpy.random.rand()), float(torch.rand(()))

    draw()
    held = back(random_state())
    expected = [draw() for _ in range(3)]
    set_random_state(held)
    assert [draw() for _ in range(3)] == expected
