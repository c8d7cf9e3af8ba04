from __future__ import annotations

import math

import pytest
import torch
from hypothesis import strategies as st

from rlhf_peft.maths import (
    explained_variance,
    full_precision,
    last_index,
    masked_mean,
    masked_sum,
    masked_var,
    weighted_sum,
    whiten,
)

from .support import NAN, given, masks, noise, spoil, widen

X = torch.tensor([[1.0, NAN, 3.0], [5.0, 7.0, NAN]])
MASK = torch.tensor([[True, False, True], [True, True, False]])


def test_sum_mean_and_variance_by_hand():
    assert masked_sum(X, MASK).item() == 16
    assert masked_mean(X, MASK).item() == 4
    assert masked_var(X, MASK).item() == pytest.approx(20 / 3)
    assert masked_var(X, MASK, unbiased=False).item() == 5
    assert masked_sum(X, MASK, dim=1).tolist() == [4, 12]
    assert masked_mean(X, MASK, dim=0).tolist() == [3, 7, 3]
    assert masked_var(X, MASK, dim=1).tolist() == [2, 2]


def test_nothing_real_gives_the_sum_zero_and_the_mean_nan():
    nothing = torch.zeros_like(MASK)
    assert masked_sum(X, nothing).item() == 0
    assert math.isnan(masked_mean(X, nothing).item())


def test_half_precision_and_booleans_are_counted_exactly():
    ones = torch.ones(1, 4097, dtype=torch.bfloat16)
    real = torch.ones(1, 4097, dtype=torch.bool)
    assert masked_sum(ones, real).item() == 4097
    assert masked_mean(real, real).item() == 1
    assert full_precision(ones).dtype == torch.float32
    assert full_precision(ones.double()).dtype == torch.float64


@given(mask=masks(), seed=st.integers(0, 10**6), extra=st.integers(0, 4))
def test_statistics_equal_those_of_the_real_values_alone(mask, seed, extra):
    x = noise(mask.shape, seed)
    real, wide_mask = x[mask], widen(mask, extra)
    wide = spoil(widen(x, extra), wide_mask)
    torch.testing.assert_close(masked_sum(wide, wide_mask), real.sum())
    torch.testing.assert_close(masked_mean(wide, wide_mask), real.mean())
    if real.numel() > 1:
        torch.testing.assert_close(masked_var(wide, wide_mask), real.var())
    torch.testing.assert_close(masked_var(wide, wide_mask, unbiased=False), real.var(unbiased=False))


@given(mask=masks(), seed=st.integers(0, 10**6), extra=st.integers(0, 4))
def test_whitening_sets_the_moments_and_ignores_padding(mask, seed, extra):
    x = 3 * noise(mask.shape, seed) + 2
    wide_mask = widen(mask, extra)
    white = whiten(spoil(widen(x, extra), wide_mask), wide_mask)
    kept = whiten(spoil(widen(x, extra), wide_mask), wide_mask, keep_mean=True)
    assert (white[~wide_mask] == 0).all() and (kept[~wide_mask] == 0).all()
    assert white[wide_mask].mean().item() == pytest.approx(0, abs=1e-5)
    assert kept[wide_mask].mean().item() == pytest.approx(x[mask].mean().item(), abs=1e-4)
    if x[mask].numel() > 1 and x[mask].std() > 1e-2:
        assert white[wide_mask].var().item() == pytest.approx(1, abs=1e-3)
        assert kept[wide_mask].var().item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(white[:, : mask.shape[1]], whiten(x, mask), atol=1e-5, rtol=1e-5)


def test_whitening_a_constant_is_finite():
    x, mask = torch.full((2, 3), 0.5), torch.ones(2, 3, dtype=torch.bool)
    assert (whiten(x, mask) == 0).all()
    assert (whiten(x, mask, keep_mean=True) == 0.5).all()
    assert whiten(x[:1, :1], mask[:1, :1]).item() == 0


def test_last_index_skips_holes():
    mask = torch.tensor(
        [[True, False, True, False], [True, False, False, False], [False, False, False, True]]
    )
    assert last_index(mask).tolist() == [2, 0, 3]


def test_last_index_names_rows_without_real_tokens():
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        last_index(torch.tensor([[True, False], [False, False]]))


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.75), (-1.0, -3.0)])
def test_explained_variance(scale, expected):
    returns = noise((3, 5), 1)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 2:4] = False
    values = spoil(scale * returns + 4.0, mask)
    assert explained_variance(spoil(returns, mask), values, mask).item() == pytest.approx(expected, abs=1e-5)


def test_explained_variance_of_constant_returns_is_undefined():
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert math.isnan(explained_variance(torch.ones(1, 4), noise((1, 4), 0), mask).item())


def test_weighted_sum_drops_what_has_no_weight_forward_and_backward():
    terms = torch.tensor([1.0, NAN, float("inf"), 2.0], requires_grad=True)
    total = weighted_sum(terms, torch.tensor([0.5, 0.0, 0.0, 2.0]))
    total.backward()
    assert total.item() == 4.5
    assert terms.grad.tolist() == [0.5, 0, 0, 2]
