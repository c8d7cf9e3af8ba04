from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import strategies as st

from rlhf_peft.maths import (
    discounted_returns,
    gae,
    group_advantages,
    leave_one_out,
    overlong_penalty,
    token_rewards,
    varies,
)

from .support import NAN, given, masks, noise, spoil, widen

unit = st.floats(0, 1)
seeds = st.integers(0, 10**6)


def gae_loop(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The textbook recursion on one row without holes."""
    advantages, advantage, following = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        advantage = reward + gamma * following - value + gamma * lam * advantage
        following = value
        advantages.append(advantage)
    return advantages[::-1]


def test_gae_by_hand():
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, 1.5]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.5)
    # deltas: 1 + .5 - .5 = 1;  0 + .75 - 1 = -.25;  2 - 1.5 = .5
    assert advantages.tolist() == [[0.96875, -0.125, 0.5]]
    assert returns.tolist() == [[1.46875, 0.875, 2.0]]


@given(mask=masks(), seed=seeds, gamma=unit, lam=unit)
def test_gae_with_holes_is_gae_on_the_compacted_row(mask, seed, gamma, lam):
    rewards, values = noise(mask.shape, seed), noise(mask.shape, seed + 1)
    advantages, returns = gae(spoil(rewards, mask), spoil(values, mask), mask, gamma, lam)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()
    torch.testing.assert_close(returns[mask], (advantages + values)[mask])
    for row, real in enumerate(mask):
        expected = gae_loop(rewards[row, real].tolist(), values[row, real].tolist(), gamma, lam)
        torch.testing.assert_close(advantages[row, real], torch.tensor(expected), atol=1e-5, rtol=1e-5)


@given(mask=masks(), seed=seeds, extra=st.integers(1, 9))
def test_gae_does_not_depend_on_the_amount_of_padding(mask, seed, extra):
    rewards, values = noise(mask.shape, seed), noise(mask.shape, seed + 1)
    narrow = gae(rewards, values, mask)
    wide_mask = widen(mask, extra)
    wide = gae(spoil(widen(rewards, extra), wide_mask), spoil(widen(values, extra), wide_mask), wide_mask)
    for a, b in zip(narrow, wide, strict=True):
        torch.testing.assert_close(a, b[:, : mask.shape[1]], atol=1e-6, rtol=1e-6)


@given(mask=masks(), seed=seeds)
def test_gae_with_lambda_one_is_the_future_reward_minus_the_value(mask, seed):
    rewards, values = noise(mask.shape, seed), noise(mask.shape, seed + 1)
    advantages, _ = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    future = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages[mask], (future - values)[mask], atol=1e-5, rtol=1e-5)


@given(mask=masks(), seed=seeds)
def test_gae_of_a_perfect_value_function_is_zero(mask, seed):
    rewards = noise(mask.shape, seed)
    values = discounted_returns(rewards, mask, 0.9)
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.7)
    torch.testing.assert_close(advantages, torch.zeros_like(advantages), atol=1e-5, rtol=0)
    torch.testing.assert_close(returns, values, atol=1e-5, rtol=1e-5)


def test_gae_of_long_rows_matches_the_recursion():
    rewards, values = noise((1, 3000), 0), noise((1, 3000), 1)
    advantages, _ = gae(rewards, values, torch.ones(1, 3000, dtype=torch.bool), 0.999, 0.98)
    expected = gae_loop(rewards[0].tolist(), values[0].tolist(), 0.999, 0.98)
    torch.testing.assert_close(advantages[0], torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_gae_carries_no_gradient_and_accepts_rows_without_tokens():
    values = torch.zeros(2, 3, requires_grad=True)
    advantages, _ = gae(torch.ones(2, 3), values, torch.tensor([[True] * 3, [False] * 3]))
    assert not advantages.requires_grad
    assert advantages[1].tolist() == [0, 0, 0]


def test_discounted_returns_skip_holes():
    mask = torch.tensor([[True, False, True, True, False]])
    rewards = torch.tensor([[1.0, NAN, 2.0, 4.0, NAN]])
    assert discounted_returns(rewards, mask, 0.5).tolist() == [[3.0, 0, 4.0, 4.0, 0]]


def test_token_rewards_put_the_score_at_the_last_real_token():
    mask = torch.tensor([[True, False, True, False], [True, True, True, True]])
    kl = torch.tensor([[1.0, NAN, 2.0, NAN], [0.0, 1.0, 0.0, -1.0]])
    rewards = token_rewards(torch.tensor([5.0, -1.0]), kl, mask, beta=0.5)
    assert rewards.tolist() == [[-0.5, 0, 4.0, 0], [0, -0.5, 0, -0.5]]
    dense = token_rewards(torch.tensor([5.0, -1.0]), kl, mask, 0.5, token_scores=torch.full((2, 4), 0.25))
    assert dense.tolist() == [[-0.25, 0, 4.25, 0], [0.25, -0.25, 0.25, -0.25]]


@given(mask=masks(), seed=seeds)
def test_token_rewards_sum_to_the_score_less_the_penalty(mask, seed):
    kl, scores = noise(mask.shape, seed), noise(mask.shape[:1], seed + 1)
    total = token_rewards(scores, spoil(kl, mask), mask, 0.3).sum(1)
    expected = scores - 0.3 * torch.where(mask, kl, 0.0).sum(1)
    torch.testing.assert_close(total, expected, atol=1e-5, rtol=1e-5)


def test_token_rewards_refuse_missing_scores_and_empty_rows():
    mask = torch.tensor([[True], [True]])
    with pytest.raises(ValueError, match=r"rows \[1\] have no score"):
        token_rewards(torch.tensor([1.0, NAN]), torch.zeros(2, 1), mask, 0.1)
    with pytest.raises(ValueError, match=r"rows \[0\]"):
        token_rewards(torch.ones(2), torch.zeros(2, 1), torch.tensor([[False], [True]]), 0.1)


SCORES = torch.tensor([1.0, 10.0, 3.0, NAN, 30.0, 7.0])
GROUP = torch.tensor([-4, 99, -4, 99, 99, 5])


def test_group_advantages_by_hand():
    torch.testing.assert_close(
        group_advantages(SCORES, GROUP, "group", eps=0.0)[:5],
        torch.tensor([-1.0, -1.0, 1.0, 0.0, 1.0]) * 0.5**0.5,
    )
    assert group_advantages(SCORES, GROUP, "none").tolist() == [-1, -10, 1, 0, 10, 0]
    spread = statistics.stdev([1, 10, 3, 30, 7])
    expected = torch.tensor([-1.0, -10.0, 1.0, 0.0, 10.0, 0.0]) / (spread + 1e-4)
    torch.testing.assert_close(group_advantages(SCORES, GROUP, "batch"), expected)


def test_rows_alone_in_their_group_have_no_advantage():
    assert group_advantages(SCORES, GROUP)[5].item() == 0
    assert leave_one_out(SCORES, GROUP)[5].item() == 0


def test_leave_one_out_by_hand():
    scores, group = torch.tensor([1.0, 2.0, 6.0, NAN, 4.0]), torch.tensor([0, 0, 0, 0, 1])
    assert leave_one_out(scores, group).tolist() == [-3, -1.5, 4.5, 0, 0]


@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.none() | st.floats(-100, 100, width=32)), min_size=1, max_size=16
    ),
    st.randoms(use_true_random=False),
)
def test_group_statistics_do_not_depend_on_order_and_ignore_abstentions(rows, random):
    shuffled = rows.copy()
    random.shuffle(shuffled)
    for function in (leave_one_out, group_advantages):
        results = []
        for table in (rows, shuffled):
            scores = torch.tensor([NAN if s is None else s for _, s in table])
            advantages = function(scores, torch.tensor([g for g, _ in table]))
            assert (advantages[scores.isnan()] == 0).all() and advantages.isfinite().all()
            results.append(sorted(zip([g for g, _ in table], advantages.tolist(), strict=True)))
        assert [a for _, a in results[0]] == pytest.approx([a for _, a in results[1]], abs=1e-2, rel=1e-3)
    for g in {g for g, s in rows if s is not None}:
        voters = [s for h, s in rows if h == g and s is not None]
        others = torch.tensor([s for s in voters])
        baseline = (others.sum() - others) / max(len(voters) - 1, 1)
        expected = others - baseline if len(voters) > 1 else torch.zeros(1)
        scores = torch.tensor([NAN if s is None else s for _, s in rows])
        group = torch.tensor([h for h, _ in rows])
        found = leave_one_out(scores, group)[(group == g) & ~scores.isnan()]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_scores_give_exactly_zero(scale):
    scores = torch.tensor([0.1, 0.1, 0.1, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3])
    group = torch.tensor([0] * 3 + [1] * 7)
    assert (group_advantages(scores, group, scale) == 0).all()
    assert (leave_one_out(scores, group) == 0).all()


def test_all_abstained_and_no_rows():
    nothing, group = torch.full((3,), NAN), torch.tensor([1, 1, 2])
    for scale in ("group", "batch", "none"):
        assert group_advantages(nothing, group, scale).tolist() == [0, 0, 0]
    assert group_advantages(nothing[:0], group[:0]).shape == (0,)


def test_group_advantages_refuse_bad_input():
    with pytest.raises(ValueError, match="known: group, batch, none"):
        group_advantages(SCORES, GROUP, "rows")
    with pytest.raises(ValueError, match=r"rows \[0\] have an infinite score"):
        group_advantages(torch.tensor([float("inf"), 0.0]), torch.tensor([0, 0]))


def test_the_overlong_penalty_grows_over_the_buffer():
    lengths = torch.tensor([1, 80, 90, 100, 120])
    assert overlong_penalty(lengths, 100, 20).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    with pytest.raises(ValueError, match="must be positive"):
        overlong_penalty(lengths, 100, 0)


def test_scores_vary_only_where_two_differ():
    nan = NAN
    assert varies(torch.tensor([1.0, nan, 2.0]))
    for same in ([], [1.0], [nan, 1.0], [0.1, 0.1, 0.1], [nan, nan]):
        assert not varies(torch.tensor(same))
