from __future__ import annotations

import math

import pytest
import torch
from hypothesis import strategies as st

from rlhf_peft.maths import bootstrap_interval, distinct_n, expected_calibration_error, reliability

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


def test_a_bootstrap_interval_by_hand():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0.0, 1.0] * 50)
    low, high = bootstrap_interval(values, generator, draws=20_000)
    # The mean of 100 coins: 0.5 +- 1.96 * 0.05.
    assert low == pytest.approx(0.402, abs=0.011) and high == pytest.approx(0.598, abs=0.011)
    assert bootstrap_interval(torch.tensor([3.0]), generator) == (3.0, 3.0)


def test_the_interval_covers_as_often_as_it_says():
    generator = torch.Generator().manual_seed(1)
    inside = 0
    for _ in range(300):
        low, high = bootstrap_interval(torch.randn(60, generator=generator), generator, level=0.8, draws=400)
        inside += low <= 0.0 <= high
    assert 0.72 < inside / 300 < 0.87


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20), st.floats(0.1, 0.99))
def test_an_interval_lies_within_the_values_and_moves_with_them(values, level):
    rows = torch.tensor(values, dtype=torch.float64)
    low, high = bootstrap_interval(rows, torch.Generator().manual_seed(0), level=level, draws=50)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    moved = bootstrap_interval(rows + 7, torch.Generator().manual_seed(0), level=level, draws=50)
    assert moved == (pytest.approx(low + 7, abs=1e-6), pytest.approx(high + 7, abs=1e-6))


@pytest.mark.parametrize(("values", "level"), [([], 0.9), ([[1.0]], 0.9), ([1.0], 0.0), ([1.0], 1.0)])
def test_an_interval_refuses(values, level):
    with pytest.raises(ValueError, match=r"values must be|level is"):
        bootstrap_interval(torch.tensor(values), torch.Generator(), level=level)


def test_reliability_by_hand():
    # sigma(log 3) = 0.75: of four pairs judged so surely, the higher one is better in three.
    sure = math.log(3)
    found = reliability([sure, -sure, sure, -sure, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0], bins=2)
    assert found == [(0.5, 0.5, 1), (pytest.approx(0.75), 0.75, 4)]
    assert reliability([], []) == []


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 1)), min_size=1, max_size=30), st.integers(1, 9))
def test_reliability_counts_every_pair_and_forgets_the_order(pairs, bins):
    margins, labels = zip(*pairs, strict=True)
    found = reliability(margins, labels, bins)
    assert sum(count for _, _, count in found) == len(pairs)
    assert all(0.5 <= sure <= 1 and 0 <= right <= 1 for sure, right, _ in found)
    turned = reliability([-m for m in margins], [1 - x for x in labels], bins)
    assert [(p, pytest.approx(r, abs=1e-9), n) for p, r, n in found] == turned


def test_reliability_refuses():
    with pytest.raises(ValueError, match="1 margins and 2 labels"):
        reliability([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="bins is 0"):
        reliability([1.0], [1.0], 0)
