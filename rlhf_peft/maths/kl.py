"""Kullback-Leibler divergence between policy and reference: estimators, where they may stand, and the
adaptive coefficient.

All estimators are per token, for KL(policy || reference), with tokens drawn from the policy.

Left out on purpose: the logger. `check_kl_placement` returns its warning as a string.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

KLKind = Literal["k1", "k2", "k3"]
KLPlacement = Literal["reward", "loss"]


def kl_estimate(logps: Tensor, ref_logps: Tensor, kind: KLKind) -> Tensor:
    """Estimate the KL from the log-probabilities of the drawn tokens alone.

    d = ref_logps - logps;  k1 = -d;  k2 = d^2 / 2;  k3 = exp(d) - 1 - d

    Schulman 2020, http://joschu.net/blog/kl-approx.html. k1 and k3 are unbiased as values, k2 and k3 are
    never negative. As gradients they differ: see `check_kl_placement`.

    Args:
        logps: [B, T] log-probabilities under the policy, in nats.
        ref_logps: [B, T] log-probabilities under the reference, in nats.
        kind: "k1", "k2" or "k3".

    Returns:
        [B, T] estimates, in nats.

    Raises:
        ValueError: `kind` is unknown.
    """
    _check_name("KL estimator", kind, KLKind)
    difference = ref_logps - logps
    if kind == "k1":
        return -difference
    if kind == "k2":
        return 0.5 * difference.square()
    return torch.clamp(torch.expm1(difference) - difference, min=0.0)


def kl_exact(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Compute the KL over the whole vocabulary.

    sum_v p_v (log p_v - log q_v)

    Args:
        logits: [..., V] of the policy p; -inf excludes a token.
        ref_logits: [..., V] of the reference q.

    Returns:
        [...] KL(p || q), in nats; infinite where p allows what q excludes.
    """
    logp, logq = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    log_ratio = torch.where(logp > -math.inf, logp - logq, 0.0)
    return (logp.exp() * log_ratio).sum(-1)


def adaptive_beta(beta: float, kl: float, target: float, horizon: float, n: float) -> float:
    """Move the KL coefficient towards the value that keeps the KL at its target.

    e = clip(kl / target - 1, -0.2, 0.2);  beta <- beta * (1 + e * n / horizon)

    Ziegler et al. 2019, section 2.2.

    Args:
        beta: the coefficient so far.
        kl: mean over responses of the sum over tokens, in nats.
        target: wanted KL, same unit, positive.
        horizon: number of rows over which beta adapts, above 0.2 * n.
        n: rows seen since the last update.

    Returns:
        The new coefficient; of the sign of `beta`.

    Raises:
        ValueError: the KL is not finite, the target is not positive, or the horizon is so short that the
            coefficient could change its sign.
    """
    if not math.isfinite(kl):
        raise ValueError(f"the KL is {kl}; the coefficient adapts to finite values only")
    if target <= 0:
        raise ValueError(f"the KL target is {target}; it must be positive")
    if horizon <= 0.2 * n:
        raise ValueError(f"the horizon of {horizon} rows must be more than {0.2 * n:g} for {n} rows a step")
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return beta * (1.0 + error * n / horizon)


def check_kl_placement(kind: KLKind, placement: KLPlacement) -> str | None:
    """Judge whether an estimator, at its place, pulls along the gradient of the KL.

    reward: g = E[k(a) grad log p(a)];  loss: g = E[grad k(a)];  wanted: grad KL(p || q)

    k1 in the reward and k2 in the loss are exact, k3 in the loss is close (it is the gradient of KL(q || p)),
    k2 and k3 in the reward are not, and k1 in the loss has zero expectation. See also Tang and Munos 2025,
    arXiv:2506.09477.

    Args:
        kind: "k1", "k2" or "k3".
        placement: "reward" or "loss".

    Returns:
        None, or a warning for the user.

    Raises:
        ValueError: a name is unknown, or the placement cannot work (k1 in the loss).
    """
    _check_name("KL estimator", kind, KLKind)
    _check_name("KL placement", placement, KLPlacement)
    if placement == "loss" and kind == "k1":
        raise ValueError(
            "KL estimator k1 in the loss has zero expected gradient, so nothing holds the "
            "policy near the reference: use k2 (exact) or k3 (close) in the loss, or k1 in the reward"
        )
    if placement == "reward" and kind != "k1":
        return f"KL estimator {kind} in the reward does not follow the gradient of the KL: use k1 there"
    return None


def _check_name(what: str, name: str, allowed: object) -> None:
    if name not in get_args(allowed):
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(get_args(allowed))}")
