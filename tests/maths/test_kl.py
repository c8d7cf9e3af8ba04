from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from rlhf_peft.maths import adaptive_beta, check_kl_placement, kl_estimate, kl_exact

from .support import given

KINDS = ("k1", "k2", "k3")


def policies(seed: int, vocabulary: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(vocabulary, generator=generator, dtype=torch.float64).requires_grad_()
    return theta, torch.randn(vocabulary, generator=generator, dtype=torch.float64)


def true_gradient(theta: Tensor, ref: Tensor) -> Tensor:
    return torch.autograd.grad(kl_exact(theta, ref), theta)[0]


def expected_gradient(theta: Tensor, ref: Tensor, kind: str, placement: str) -> Tensor:
    """Enumerate the tokens, each with its probability, and add up what the estimator's gradient would be."""
    logp, logq = theta.log_softmax(-1), ref.log_softmax(-1)
    estimates = kl_estimate(logp, logq, kind)
    surrogate = estimates.detach() * logp if placement == "reward" else estimates
    return torch.autograd.grad((logp.detach().exp() * surrogate).sum(), theta)[0]


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a, b, dim=0).item()


def test_estimators_by_hand():
    logps, ref_logps = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    assert kl_estimate(logps, ref_logps, "k1").tolist() == [0.5, -1.0]
    assert kl_estimate(logps, ref_logps, "k2").tolist() == [0.125, 0.5]
    expected = torch.tensor([0.1065307, 0.7182818])
    torch.testing.assert_close(kl_estimate(logps, ref_logps, "k3"), expected)


@given(st.floats(-60, 0, width=32), st.floats(-(2**-10), 2**-10, width=32) | st.floats(-60, 60, width=32))
def test_k2_and_k3_are_never_negative(logp, difference):
    logps = torch.tensor(logp)
    for kind in ("k2", "k3"):
        assert kl_estimate(logps, logps + difference, kind).item() >= 0


@given(st.integers(0, 10**6))
def test_k1_and_k3_are_unbiased_by_enumeration(seed):
    theta, ref = policies(seed)
    logp, logq = theta.log_softmax(-1), ref.log_softmax(-1)
    for kind in ("k1", "k3"):
        expected = (logp.exp() * kl_estimate(logp, logq, kind)).sum()
        torch.testing.assert_close(expected, kl_exact(theta, ref))


def test_exact_kl_by_hand_and_with_excluded_tokens():
    half, skewed = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert kl_exact(half, skewed).item() == pytest.approx(0.5 * torch.tensor(4 / 3).log().item())
    assert kl_exact(half + 3.0, skewed - 7.0).item() == pytest.approx(kl_exact(half, skewed).item(), abs=1e-6)
    only_first = torch.tensor([0.0, -torch.inf], requires_grad=True)
    divergence = kl_exact(only_first, half)
    divergence.backward()
    assert divergence.item() == pytest.approx(torch.tensor(2.0).log().item())
    assert only_first.grad.isfinite().all()
    assert kl_exact(half, only_first.detach()).item() == float("inf")


@given(st.integers(0, 10**6))
def test_k1_in_the_reward_and_k2_in_the_loss_are_the_gradient(seed):
    theta, ref = policies(seed)
    wanted = true_gradient(theta, ref)
    torch.testing.assert_close(expected_gradient(theta, ref, "k1", "reward"), wanted)
    torch.testing.assert_close(expected_gradient(theta, ref, "k2", "loss"), wanted)


@given(st.integers(0, 10**6))
def test_k1_in_the_loss_has_no_expected_gradient(seed):
    theta, ref = policies(seed)
    gradient = expected_gradient(theta, ref, "k1", "loss")
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_k3_is_close_in_the_loss_and_not_in_the_reward():
    in_loss, in_reward = [], []
    for seed in range(50):
        theta, ref = policies(seed)
        wanted = true_gradient(theta, ref)
        in_loss.append(cosine(expected_gradient(theta, ref, "k3", "loss"), wanted))
        in_reward.append(cosine(expected_gradient(theta, ref, "k3", "reward"), wanted))
    assert 0.5 < sum(in_loss) / 50 < 1
    assert sorted(in_loss)[5] > 0.5 and max(in_loss) < 1 - 1e-6
    assert sum(in_reward) / 50 < 0.5
    assert min(in_reward) < 0


def test_k3_in_the_loss_is_the_gradient_of_the_reversed_kl():
    theta, ref = policies(3)
    reversed_kl = torch.autograd.grad(kl_exact(ref, theta), theta)[0]
    torch.testing.assert_close(expected_gradient(theta, ref, "k3", "loss"), reversed_kl)


@pytest.mark.parametrize(("kind", "placement"), [("k1", "reward"), ("k2", "loss"), ("k3", "loss")])
def test_good_placements_pass(kind, placement):
    assert check_kl_placement(kind, placement) is None


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_biased_rewards_warn(kind):
    assert kind in (check_kl_placement(kind, "reward") or "")


def test_k1_in_the_loss_is_refused():
    with pytest.raises(ValueError, match="zero expected gradient"):
        check_kl_placement("k1", "loss")


@pytest.mark.parametrize(("kind", "placement"), [("k4", "loss"), ("k1", "prompt")])
def test_unknown_names_list_the_known_ones(kind, placement):
    with pytest.raises(ValueError, match="known: "):
        check_kl_placement(kind, placement)
    if kind not in KINDS:
        with pytest.raises(ValueError, match="k1, k2, k3"):
            kl_estimate(torch.zeros(1), torch.zeros(1), kind)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),
        (6.6, 0.1 * (1 + 0.1 * 0.0256)),
        (60.0, 0.1 * (1 + 0.2 * 0.0256)),
        (5.4, 0.1 * (1 - 0.1 * 0.0256)),
        (-1.0, 0.1 * (1 - 0.2 * 0.0256)),
    ],
)
def test_adaptive_beta_by_hand(kl, expected):
    assert adaptive_beta(0.1, kl, target=6.0, horizon=10_000, n=256) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"kl": float("nan")}, "finite"), ({"target": 0.0}, "target"), ({"horizon": 50.0}, "horizon")],
)
def test_adaptive_beta_refuses(change, match):
    with pytest.raises(ValueError, match=match):
        adaptive_beta(**({"beta": 0.1, "kl": 1.0, "target": 6.0, "horizon": 10_000.0, "n": 256} | change))
