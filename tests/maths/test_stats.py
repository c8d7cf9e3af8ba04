from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st

from rlhf_peft.maths import distinct_n, expected_calibration_error

from .support import given


def test_distinct_n_by_hand():
    sequences = [[1, 2, 1, 2], [1, 2]]
    assert distinct_n(sequences, 1) == 2 / 6
    assert distinct_n(sequences, 2) == 2 / 4
    assert distinct_n(sequences, 4) == 1
    assert distinct_n(sequences, 5) == 0
    assert distinct_n([], 1) == 0


def test_distinct_n_refuses_empty_grams():
    with pytest.raises(ValueError, match="at least 1"):
        distinct_n([[1]], 0)


@given(st.lists(st.lists(st.integers(0, 3), max_size=8), max_size=5), st.integers(1, 3))
def test_distinct_n_is_a_share_and_does_not_grow_by_repetition(sequences, n):
    share = distinct_n(sequences, n)
    assert 0 <= share <= 1
    assert distinct_n(sequences * 2, n) == pytest.approx(share / 2)


def test_calibration_by_hand():
    probabilities = torch.tensor([0.1, 0.15, 0.9, 1.0])
    outcomes = torch.tensor([False, True, True, True])
    # bin 1: mean outcome 0.5, mean probability 0.125; bin 9: 1 and 0.95
    assert expected_calibration_error(probabilities, outcomes) == pytest.approx(0.5 * 0.375 + 0.5 * 0.05)
    assert expected_calibration_error(probabilities, outcomes, bins=1) == pytest.approx(0.75 - 2.15 / 4)


def test_calibrated_predictions_have_no_error():
    probabilities = torch.tensor([0.25] * 4 + [1.0] * 3)
    outcomes = torch.tensor([1, 0, 0, 0, 1, 1, 1])
    assert expected_calibration_error(probabilities, outcomes) == pytest.approx(0)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=20), st.integers(1, 12))
def test_calibration_error_is_a_share(pairs, bins):
    probabilities, outcomes = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert 0 <= expected_calibration_error(probabilities, outcomes, bins) <= 1 + 1e-6


@pytest.mark.parametrize(
    ("probabilities", "outcomes", "bins", "match"),
    [
        ([0.5], [1.0, 0.0], 10, "must both be"),
        ([], [], 10, "must both be"),
        ([1.5], [1.0], 10, "outside"),
        ([float("nan")], [1.0], 10, "outside"),
        ([0.5], [1.0], 0, "bins"),
    ],
)
def test_calibration_refuses(probabilities, outcomes, bins, match):
    with pytest.raises(ValueError, match=match):
        expected_calibration_error(torch.tensor(probabilities), torch.tensor(outcomes), bins)
