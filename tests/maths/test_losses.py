from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import strategies as st

from rlhf_peft.maths import (
    bradley_terry,
    cispo_terms,
    dpo_terms,
    ppo_policy_terms,
    sequence_log_ratio,
    token_weights,
    truncated_importance,
    value_terms,
    weighted_sum,
)

from .support import NAN, given, masks, noise, spoil, widen

seeds = st.integers(0, 10**6)


def logs(*ratios: float) -> torch.Tensor:
    return torch.tensor([ratios]).log()


def test_ppo_terms_by_hand_with_an_asymmetric_clip():
    logps = logs(1.5, 1.25, 0.5, 0.9, 1.5, 0.5).requires_grad_()
    advantages = torch.tensor([[2.0, 2.0, 2.0, -1.0, -1.0, -1.0]])
    terms, clipped = ppo_policy_terms(logps, torch.zeros(1, 6), advantages, clip_low=0.2, clip_high=0.28)
    # gains are bounded at 1.28 (A > 0) and 0.8 (A < 0); losses are not bounded
    torch.testing.assert_close(terms, torch.tensor([[-2.56, -2.5, -1.0, 0.9, 1.5, 0.8]]))
    assert clipped.tolist() == [[True, False, False, False, False, True]]
    terms.sum().backward()
    assert ((logps.grad == 0) == clipped).all()


@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 5)), seed=seeds)
def test_ppo_gradient_at_ratio_one_is_that_of_reinforce(shape, seed):
    logps, advantages = noise(shape, seed).requires_grad_(), noise(shape, seed + 1)
    terms, clipped = ppo_policy_terms(logps, logps.detach(), advantages, 0.2, 0.2)
    terms.sum().backward()
    torch.testing.assert_close(terms.detach(), -advantages)
    torch.testing.assert_close(logps.grad, -advantages)
    assert not clipped.any()


@given(seed=seeds, low=st.floats(0, 0.9), high=st.floats(0, 2))
def test_ppo_term_is_never_below_the_unclipped_one(seed, low, high):
    logps, old, advantages = noise((3, 4), seed), noise((3, 4), seed + 1), noise((3, 4), seed + 2)
    terms, clipped = ppo_policy_terms(logps, old, advantages, low, high)
    unclipped = -(logps - old).exp() * advantages
    assert (terms >= unclipped - 1e-6).all()
    torch.testing.assert_close(terms[~clipped], unclipped[~clipped])


def test_ppo_extreme_ratios_keep_gradients_finite():
    logps = torch.tensor([[500.0, 500.0, -500.0]], requires_grad=True)
    terms, clipped = ppo_policy_terms(logps, torch.zeros(1, 3), torch.tensor([[1.0, -1.0, 1.0]]), 0.2, 0.2)
    terms.sum().backward()
    assert terms.isfinite().all() and logps.grad.isfinite().all()
    assert clipped.tolist() == [[True, False, False]]


def test_ppo_refuses_negative_bounds():
    with pytest.raises(ValueError, match="clip bounds"):
        ppo_policy_terms(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1), -0.1, 0.2)


@given(mask=masks(), seed=seeds)
def test_sequence_ratio_is_the_geometric_mean(mask, seed):
    logps, old = noise(mask.shape, seed), noise(mask.shape, seed + 1)
    log_ratio = sequence_log_ratio(spoil(logps, mask), old, mask)
    for row, real in enumerate(mask):
        torch.testing.assert_close(log_ratio[row, 0], (logps - old)[row, real].mean())


def test_sequence_ratio_makes_the_clip_one_of_whole_rows():
    logps = logs(2.0, 1.1).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    log_ratio = sequence_log_ratio(logps, torch.zeros(1, 2), mask)
    terms, clipped = ppo_policy_terms(
        logps, torch.zeros(1, 2), torch.ones(1, 1), 0.2, 0.9, log_importance=log_ratio
    )
    ratio = math.sqrt(2.2)
    assert not clipped.any() and terms[0].tolist() == pytest.approx([-ratio, -ratio])
    weighted_sum(terms, token_weights(mask, "sequence", tokens=2, rows=1)).backward()
    assert logps.grad[0].tolist() == pytest.approx([-ratio / 2, -ratio / 2])
    assert sequence_log_ratio(logps, logps, torch.zeros_like(mask)).tolist() == [[0]]


def test_cispo_bounds_the_weight_and_keeps_the_gradient():
    logps = logs(4.0, 1.1, 0.1).requires_grad_()
    advantages = torch.tensor([[2.0, -1.0, 1.0]])
    cispo_terms(logps, torch.zeros(1, 3), advantages, cap=1.5).sum().backward()
    assert logps.grad[0].tolist() == pytest.approx([-3.0, 1.1, -0.1])


def test_value_terms_by_hand():
    values = torch.tensor([[1.5, 1.1, 0.0, 2.0]], requires_grad=True)
    old, returns = torch.ones(1, 4), torch.tensor([[2.0, 2.0, 2.0, 1.0]])
    terms = value_terms(values, old, returns, clip=0.2)
    # moved 0.5 towards the target: the clipped 1.2 is the worse one and has no gradient
    torch.testing.assert_close(terms, torch.tensor([[0.32, 0.405, 2.0, 0.5]]))
    terms.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, -0.9, -2.0, 1.0]]))
    unclipped = value_terms(values, old, returns, clip=None)
    torch.testing.assert_close(unclipped, 0.5 * (values - returns) ** 2)
    with pytest.raises(ValueError, match="value clip"):
        value_terms(values, old, returns, clip=-1.0)


@given(seed=seeds, clip=st.floats(0, 3))
def test_value_clip_never_lowers_the_loss(seed, clip):
    values, old, returns = noise((2, 5), seed), noise((2, 5), seed + 1), noise((2, 5), seed + 2)
    assert (value_terms(values, old, returns, clip) >= value_terms(values, old, returns, None)).all()


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_bradley_terry_by_hand():
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert bradley_terry(chosen, rejected).tolist() == pytest.approx([-log_sigmoid(1), -log_sigmoid(-2)])
    soft = bradley_terry(chosen, rejected, label=torch.tensor([0.7, 0.0]))
    assert soft.tolist() == pytest.approx([-0.7 * log_sigmoid(1) - 0.3 * log_sigmoid(-1), -log_sigmoid(2)])
    margin = bradley_terry(chosen, rejected, margin=torch.tensor([0.5, 1.0]))
    assert margin.tolist() == pytest.approx([-log_sigmoid(0.5), -log_sigmoid(-3)])
    centred = bradley_terry(chosen, rejected, center=0.01) - bradley_terry(chosen, rejected)
    assert centred.tolist() == pytest.approx([0.01, 0.04], abs=1e-6)


def test_bradley_terry_with_soft_labels_is_least_at_their_log_odds():
    difference = torch.zeros(1, requires_grad=True)
    optimum = math.log(0.7 / 0.3)
    bradley_terry(difference + optimum, torch.zeros(1), label=torch.tensor([0.7])).sum().backward()
    assert difference.grad.item() == pytest.approx(0, abs=1e-6)


def test_bradley_terry_stays_finite_and_in_full_precision():
    loss = bradley_terry(
        torch.tensor([-1e4], dtype=torch.bfloat16), torch.tensor([1e4], dtype=torch.bfloat16)
    )
    assert loss.dtype == torch.float32 and loss.isfinite().all()


@given(seed=seeds)
def test_bradley_terry_label_swaps_the_pair(seed):
    chosen, rejected, label = noise((4,), seed), noise((4,), seed + 1), noise((4,), seed + 2).sigmoid()
    swapped = bradley_terry(rejected, chosen, label=1 - label)
    torch.testing.assert_close(bradley_terry(chosen, rejected, label=label), swapped)


def test_dpo_by_hand():
    arguments = [torch.tensor([x]) for x in (-10.0, -12.0, -11.0, -11.5)]
    # margin: 0.1 * ((-10 + 11) - (-12 + 11.5)) = 0.15
    assert dpo_terms(*arguments, beta=0.1).item() == pytest.approx(-log_sigmoid(0.15))
    smoothed = -0.8 * log_sigmoid(0.15) - 0.2 * log_sigmoid(-0.15)
    assert dpo_terms(*arguments, beta=0.1, label_smoothing=0.2).item() == pytest.approx(smoothed)
    at_start = dpo_terms(arguments[0], arguments[1], arguments[0], arguments[1], beta=0.3)
    assert at_start.item() == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="smoothing"):
        dpo_terms(*arguments, beta=0.1, label_smoothing=0.5)


def test_truncated_importance_by_hand():
    logps = logs(0.5, 0.2, 0.1).requires_grad_()
    weights = truncated_importance(logps, logs(0.1, 0.2, 0.4), cap=2.0)
    assert weights[0].tolist() == pytest.approx([2.0, 1.0, 0.25])
    assert not weights.requires_grad
    with pytest.raises(ValueError, match="cap"):
        truncated_importance(logps, logps, cap=0.0)


def test_token_weights_by_hand():
    mask = torch.tensor([[True, False, True, False], [True, True, True, True], [False] * 4])
    third, fourth = 1 / 6, 1 / 8
    assert token_weights(mask, "token", tokens=6, rows=2)[0].tolist() == pytest.approx([third, 0, third, 0])
    sequence = token_weights(mask, "sequence", tokens=6, rows=2)
    assert sequence.tolist() == [[0.25, 0, 0.25, 0], [fourth] * 4, [0] * 4]
    constant = token_weights(mask, "constant", tokens=6, rows=2, length=8)
    assert constant[1].tolist() == [1 / 16] * 4 and constant.sum().item() == 6 / 16


@given(mask=masks(rows=6), seed=seeds, cuts=st.sets(st.integers(1, 5)), extra=st.integers(0, 3))
def test_the_loss_of_any_split_adds_up_to_the_whole(mask, seed, cuts, extra):
    terms = noise(mask.shape, seed)
    tokens, rows = int(mask.sum()), mask.shape[0]
    for normalisation in ("token", "sequence", "constant"):
        options = {"normalisation": normalisation, "tokens": tokens, "rows": rows, "length": 11}
        weights = token_weights(mask, **options)
        if normalisation != "constant":
            assert weights.sum().item() == pytest.approx(1, abs=1e-5)
        whole = weighted_sum(spoil(terms, mask), weights)
        parts = 0.0
        edges = [0, *sorted(c for c in cuts if c < rows), rows]
        for start, end in pairwise(edges):
            part = widen(mask[start:end], extra)
            spoiled = spoil(widen(terms[start:end], extra), part)
            parts += weighted_sum(spoiled, token_weights(part, **options)).item()
        assert parts == pytest.approx(whole.item(), abs=1e-5)


@given(mask=masks(rows=5), seed=seeds)
def test_sequence_weights_give_the_mean_over_rows_of_means_over_tokens(mask, seed):
    terms = noise(mask.shape, seed)
    weights = token_weights(mask, "sequence", tokens=int(mask.sum()), rows=mask.shape[0])
    expected = torch.stack([row[real].mean() for row, real in zip(terms, mask, strict=True)]).mean()
    torch.testing.assert_close(weighted_sum(terms, weights), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"normalisation": "row", "tokens": 1, "rows": 1}, "token, sequence, constant"),
        ({"normalisation": "token", "tokens": 0, "rows": 1}, "tokens is 0"),
        ({"normalisation": "sequence", "tokens": 1, "rows": 0}, "rows is 0"),
        ({"normalisation": "constant", "tokens": 1, "rows": 1}, "length is None"),
    ],
)
def test_token_weights_refuse(options, match):
    with pytest.raises(ValueError, match=match):
        token_weights(torch.ones(1, 1, dtype=torch.bool), **options)


def test_garbage_at_padding_reaches_no_real_gradient():
    mask = torch.tensor([[True, False, True]])
    logps = torch.tensor([[-1.0, NAN, -2.0]], requires_grad=True)
    terms, clipped = ppo_policy_terms(
        logps, torch.full((1, 3), -1.5), torch.tensor([[1.0, NAN, -1.0]]), 0.2, 0.2
    )
    weighted_sum(terms, token_weights(mask, "token", tokens=2, rows=1)).backward()
    assert logps.grad[mask].isfinite().all()
    assert not clipped[~mask].any()
