"""Terms of the losses, per token [B, T] or per pair [B], and the weights that sum them.

Every loss is sum(weight x term): `token_weights` takes the totals of the whole minibatch, so the sum over any
split into micro-batches and ranks is the loss of the whole. Terms are elementwise: what stands at a padded
position stays there, and its weight is zero (`weighted_sum` then drops it, NaN or not).

Left out on purpose: entropy bonuses and coefficients, which are one multiplication where the loss is put
together.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .masked import full_precision, masked_mean

Normalisation = Literal["token", "sequence", "constant"]

# exp(20) is 5e8: no ratio of use is larger, and exp cannot overflow into a NaN gradient (0 * inf).
_MAX_LOG_RATIO = 20.0


def ppo_policy_terms(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    log_importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Give the clipped surrogate of PPO, negated, per token.

    r = exp(logps - old_logps);  term = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)

    Schulman et al. 2017, arXiv:1707.06347, equation 7; two bounds: DAPO, Yu et al. 2025, arXiv:2503.14476,
    section 3.1. Log-ratios are held below 20, without a gradient above.

    Args:
        logps: [B, T] log-probabilities under the policy, in nats; carries the gradient.
        old_logps: [B, T] log-probabilities when the rollout was taken, in nats.
        advantages: [B, T] or [B, 1].
        clip_low: the ratio is not pushed below 1 - clip_low.
        clip_high: the ratio is not pushed above 1 + clip_high.
        log_importance: [B, T] or [B, 1], in place of logps - old_logps; `sequence_log_ratio` makes this GSPO.

    Returns:
        Terms [B, T], and whether the clip silenced the token [B, T] boolean.

    Raises:
        ValueError: a bound is negative.
    """
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip bounds are {clip_low} and {clip_high}; they must not be negative")
    log_ratio = logps - old_logps if log_importance is None else log_importance.expand_as(logps)
    ratio = torch.exp(log_ratio.clamp(max=_MAX_LOG_RATIO))
    bounded = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    clipped = ((advantages > 0) & (ratio > 1.0 + clip_high)) | ((advantages < 0) & (ratio < 1.0 - clip_low))
    return -torch.minimum(ratio * advantages, bounded * advantages), clipped


def cispo_terms(logps: Tensor, old_logps: Tensor, advantages: Tensor, cap: float) -> Tensor:
    """Give the terms of CISPO, in which every token keeps its gradient and only its weight is bounded.

    term = -sg(min(exp(logps - old_logps), cap)) A logps

    MiniMax 2025, arXiv:2506.13585, equations 4 and 5 (without a lower bound, as there).

    Args:
        logps: [B, T] log-probabilities under the policy, in nats; carries the gradient.
        old_logps: [B, T] log-probabilities when the rollout was taken, in nats.
        advantages: [B, T] or [B, 1].
        cap: largest weight.

    Returns:
        Terms [B, T].
    """
    ratio = torch.exp(logps.detach() - old_logps).clamp(max=cap)
    return -ratio * advantages * logps


def sequence_log_ratio(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """Average the log-ratio over each row's real tokens.

    log s_i = 1 / |y_i| sum_t (logps_t - old_logps_t)

    GSPO, Zheng et al. 2025, arXiv:2507.18071, equation 7.

    Args:
        logps: [B, T] log-probabilities under the policy, in nats; carries the gradient.
        old_logps: [B, T] log-probabilities when the rollout was taken, in nats.
        mask: [B, T] boolean; True at the tokens that the policy wrote.

    Returns:
        [B, 1], in nats per token; 0 for a row without real tokens.
    """
    mean = masked_mean(logps - old_logps, mask, dim=-1)
    return torch.where(mask.any(-1), mean, 0.0).unsqueeze(-1)


def value_terms(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Give the clipped squared error of the value function, per token.

    0.5 max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2)

    OpenAI baselines `ppo2`; "The N implementation details of RLHF with PPO", Huang et al. 2024.

    Args:
        values: [B, T] predictions, in reward units; carries the gradient.
        old_values: [B, T] predictions when the rollout was taken.
        returns: [B, T] targets.
        clip: how far a value may move for gain, in reward units; None does not clip.

    Returns:
        Terms [B, T].

    Raises:
        ValueError: `clip` is negative.
    """
    error = (values - returns).square()
    if clip is None:
        return 0.5 * error
    if clip < 0:
        raise ValueError(f"the value clip is {clip}; it must not be negative")
    bounded = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum(error, (bounded - returns).square())


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    label: Tensor | None = None,
    margin: Tensor | None = None,
    center: float | None = None,
) -> Tensor:
    """Give the loss of a reward model on pairs.

    d = r_c - r_r - margin;  -p log s(d) - (1 - p) log s(-d) + center (r_c + r_r)^2

    Ouyang et al. 2022, arXiv:2203.02155, equation 1; margin: Touvron et al. 2023, arXiv:2307.09288, equation
    2; centring: Eisenstein et al. 2023, arXiv:2312.09244.

    Args:
        chosen: [B] rewards of the preferred responses.
        rejected: [B] rewards of the others.
        label: [B] probability p that the preference is right, in [0, 1]; None is 1.
        margin: [B] by how much the rewards should differ; None is 0.
        center: weight of the term that pulls rewards towards mean zero; None leaves it out.

    Returns:
        [B] losses, in nats.
    """
    chosen, rejected = full_precision(chosen), full_precision(rejected)
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    loss = -logsigmoid(difference)
    if label is not None:
        loss = label * loss - (1.0 - label) * logsigmoid(-difference)
    return loss if center is None else loss + center * (chosen + rejected).square()


def dpo_terms(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Give the sigmoid loss of direct preference optimisation on pairs.

    d = beta ((chosen - ref_chosen) - (rejected - ref_rejected));  -(1 - e) log s(d) - e log s(-d)

    Rafailov et al. 2023, arXiv:2305.18290, equation 7; smoothing e: conservative DPO, Mitchell 2023.

    Args:
        chosen: [B] log-probability of the preferred response under the policy, a sum over tokens, in nats.
        rejected: [B] the same of the other response.
        ref_chosen: [B] the same as `chosen` under the reference.
        ref_rejected: [B] the same as `rejected` under the reference.
        beta: strength of the tie to the reference.
        label_smoothing: probability e that the preference is wrong, in [0, 0.5).

    Returns:
        [B] losses, in nats.

    Raises:
        ValueError: `label_smoothing` is outside [0, 0.5).
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label smoothing is {label_smoothing}; it must be in [0, 0.5)")
    gain, loss = full_precision(chosen) - ref_chosen, full_precision(rejected) - ref_rejected
    label = torch.full_like(gain, 1.0 - label_smoothing)
    return bradley_terry(beta * gain, beta * loss, label)


@torch.no_grad()
def truncated_importance(logps: Tensor, sampler_logps: Tensor, cap: float) -> Tensor:
    """Weigh tokens by how much likelier the trainer finds them than the sampler that drew them.

    w = min(exp(logps - sampler_logps), cap)

    Truncated importance sampling, Ionides 2008; for samplers that differ from the trainer: Yao et al. 2025,
    "Your efficient RL framework secretly brings you off-policy RL training".

    Args:
        logps: [B, T] the trainer's log-probabilities of the rollout, in nats.
        sampler_logps: [B, T] the sampler's, in nats.
        cap: largest weight, positive.

    Returns:
        [B, T] weights, without a gradient.

    Raises:
        ValueError: `cap` is not positive.
    """
    if cap <= 0:
        raise ValueError(f"the importance cap is {cap}; it must be positive")
    return torch.exp(full_precision(logps) - sampler_logps).clamp(max=cap)


def token_weights(
    mask: Tensor, normalisation: Normalisation, tokens: float, rows: float, length: float | None = None
) -> Tensor:
    """Give each real token its weight in the loss, from totals of the whole minibatch.

    token: 1 / tokens;  sequence: 1 / (rows |y_i|);  constant: 1 / (rows length)

    token: DAPO, arXiv:2503.14476; sequence: GRPO, arXiv:2402.03300; constant: Dr. GRPO, arXiv:2503.20783.
    Over the minibatch, token and sequence weights sum to 1; constant ones to the mean length divided by
    `length`.

    Args:
        mask: [B, T] boolean; True at the tokens that the policy wrote; any whole rows of the minibatch.
        normalisation: "token", "sequence" or "constant".
        tokens: real tokens of the whole minibatch, over all micro-batches and ranks.
        rows: rows with real tokens of the whole minibatch, over all micro-batches and ranks.
        length: tokens that a row is taken to have, for "constant".

    Returns:
        [B, T] float32 weights, 0 outside the mask.

    Raises:
        ValueError: `normalisation` is unknown, or the total it needs is missing or not positive.
    """
    if normalisation not in get_args(Normalisation):
        known = ", ".join(get_args(Normalisation))
        raise ValueError(f"unknown normalisation {normalisation!r}; known: {known}")
    if normalisation == "token":
        return mask.float() / _positive("tokens", tokens)
    if normalisation == "sequence":
        return mask / (_positive("rows", rows) * mask.sum(-1, keepdim=True).clamp(min=1).float())
    return mask.float() / (_positive("rows", rows) * _positive("length", length))


def _positive(name: str, total: float | None) -> float:
    if total is None or total <= 0:
        raise ValueError(f"{name} is {total}; this normalisation needs it to be positive")
    return total
