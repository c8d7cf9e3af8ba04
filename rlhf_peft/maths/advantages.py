"""From rewards to advantages: per-token rewards, GAE, discounted returns, and baselines within groups.

A row's real tokens are those its mask marks; they may lie in several spans (turns, tools), and "the next
token" always is the next real one. Nothing here carries gradients.

Scores of NaN are abstentions: they enter no statistic and their advantage is zero.

Left out on purpose: the choice of rows, and the mixing of several rewards into one score.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .masked import full_precision, last_index

GroupScale = Literal["group", "batch", "none"]


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Estimate advantages and value targets by generalised advantage estimation.

    delta_t = r_t + gamma V_t+ - V_t;  A_t = delta_t + gamma lam A_t+;  returns_t = A_t + V_t

    where t+ is the next real token of the row, and V and A are 0 after the last. Schulman et al. 2015,
    arXiv:1506.02438, equation 16.

    Args:
        rewards: [B, T] reward on taking token t.
        values: [B, T] value of the state before token t is taken, in reward units.
        mask: [B, T] boolean; True at the tokens that the policy wrote.
        gamma: discount per real token.
        lam: 1 is the return minus the value, 0 the one-step error.

    Returns:
        Advantages and returns, both [B, T], 0 outside the mask, not whitened.
    """
    order, packed = _pack(mask)
    reward = torch.where(packed, full_precision(rewards).gather(-1, order), 0.0)
    value = torch.where(packed, full_precision(values).gather(-1, order), 0.0)
    following = torch.nn.functional.pad(value[..., 1:], (0, 1)) if value.shape[-1] else value
    advantages = _discounted_suffix_sum(reward + gamma * following - value, gamma * lam)
    return _unpack(advantages, order, mask), _unpack(advantages + value, order, mask)


@torch.no_grad()
def discounted_returns(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Sum the rewards from each token on.

    R_t = r_t + gamma R_t+, where t+ is the next real token of the row

    Sutton and Barto 2018, equation 3.9.

    Args:
        rewards: [B, T] reward on taking token t.
        mask: [B, T] boolean; True at the tokens that the policy wrote.
        gamma: discount per real token.

    Returns:
        [B, T] returns, 0 outside the mask.
    """
    order, packed = _pack(mask)
    reward = torch.where(packed, full_precision(rewards).gather(-1, order), 0.0)
    return _unpack(_discounted_suffix_sum(reward, gamma), order, mask)


@torch.no_grad()
def token_rewards(
    scores: Tensor, kl: Tensor, mask: Tensor, beta: float, token_scores: Tensor | None = None
) -> Tensor:
    """Spread a row's score and its KL penalty over its tokens.

    r_t = -beta KL_t + token_score_t + [t is the last real token] score

    Ziegler et al. 2019, equation 2.

    Args:
        scores: [B] score of each row.
        kl: [B, T] estimate of the KL at each token, in nats.
        mask: [B, T] boolean; True at the tokens that the policy wrote.
        beta: reward per nat of KL.
        token_scores: [B, T] further rewards per token, or None.

    Returns:
        [B, T] rewards, 0 outside the mask.

    Raises:
        ValueError: a row has no real token, or its score is NaN (leave abstained rows out first).
    """
    if bool(scores.isnan().any()):
        missing = scores.isnan().nonzero().flatten().tolist()
        raise ValueError(f"rows {missing} have no score (NaN); leave them out first")
    rewards = -beta * full_precision(kl)
    if token_scores is not None:
        rewards = rewards + token_scores
    rewards = torch.where(mask, rewards, 0.0)
    return rewards.scatter_add(-1, last_index(mask).unsqueeze(-1), scores.to(rewards.dtype).unsqueeze(-1))


@torch.no_grad()
def group_advantages(scores: Tensor, group: Tensor, scale: GroupScale = "group", eps: float = 1e-4) -> Tensor:
    """Compare each score with the mean of its group.

    A_i = (s_i - mean_group) / (std + eps), with the std of the group, of the batch, or no division

    "group": GRPO, Shao et al. 2024, arXiv:2402.03300, section 4.1.2. "none": Dr. GRPO, Liu et al. 2025,
    arXiv:2503.20783. "batch": the std of all scores, Liu et al. 2025, arXiv:2508.08221. Standard deviations
    are unbiased. Equal scores in a group give exactly zero, so that such rows can be left out.

    Args:
        scores: [N] score of each row; NaN abstains.
        group: [N] any integers; equal ones are one group.
        scale: "group", "batch" or "none".
        eps: added to the standard deviation, in reward units.

    Returns:
        [N] advantages; 0 for abstentions and for rows alone in their group.

    Raises:
        ValueError: `scale` is unknown or a score is infinite.
    """
    if scale not in get_args(GroupScale):
        raise ValueError(f"unknown scale {scale!r}; known: {', '.join(get_args(GroupScale))}")
    centred, votes, index, count = _centre(scores, group)
    if scale == "none":
        return centred
    if scale == "batch":
        one_group = torch.zeros_like(index)
        return centred / (_std(_centre(scores, one_group)[0], one_group, votes.sum().view(1)) + eps)
    return centred / (_std(centred, index, count) + eps)


@torch.no_grad()
def leave_one_out(scores: Tensor, group: Tensor) -> Tensor:
    """Compare each score with the mean of the others in its group.

    A_i = s_i - sum_{j != i} s_j / (n - 1) = n / (n - 1) * (s_i - mean_group)

    RLOO, Ahmadian et al. 2024, arXiv:2402.14740.

    Args:
        scores: [N] score of each row; NaN abstains.
        group: [N] any integers; equal ones are one group.

    Returns:
        [N] advantages; 0 for abstentions and for rows without others to compare with.

    Raises:
        ValueError: a score is infinite.
    """
    centred, _, index, count = _centre(scores, group)
    n = count[index].to(centred.dtype)
    return centred * n / (n - 1).clamp(min=1)


def varies(scores: Tensor) -> bool:
    """Tell whether there are two different scores.

    Args:
        scores: [n]; NaN abstains.

    Returns:
        False for fewer than two scores.
    """
    there = scores[~scores.isnan()]
    return len(there) > 1 and bool((there != there[0]).any())


@torch.no_grad()
def overlong_penalty(lengths: Tensor, longest: int, buffer: int) -> Tensor:
    """Penalise completions that are nearly too long, linearly over the last tokens.

    clip((|y| - (longest - buffer)) / buffer, 0, 1)

    DAPO, Yu et al. 2025, arXiv:2503.14476, equation 13 (there negative, to be added).

    Args:
        lengths: [N] tokens of each completion.
        longest: most tokens that a completion may have.
        buffer: tokens over which the penalty grows, positive.

    Returns:
        [N] float32 in [0, 1].

    Raises:
        ValueError: the buffer is not positive.
    """
    if buffer <= 0:
        raise ValueError(f"the buffer is {buffer} tokens; it must be positive")
    return ((lengths.float() - (longest - buffer)) / buffer).clamp(0.0, 1.0)


def _centre(scores: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Subtract the group means; give also who votes [N], each row's group index [N], and votes a group [G].

    Scores are first taken relative to the largest of their group: equal scores then centre to exact zeros,
    which the rounded mean of, say, three times 0.1 would not give.
    """
    if bool(scores.isinf().any()):
        raise ValueError(f"rows {scores.isinf().nonzero().flatten().tolist()} have an infinite score")
    scores = full_precision(scores)
    votes = ~scores.isnan()
    index = group.unique(return_inverse=True)[1]
    size = int(index.max()) + 1 if index.numel() else 0
    count = votes.new_zeros(size, dtype=torch.long).index_add(0, index, votes.long())
    lowest = torch.where(votes, scores, -torch.inf)
    largest = lowest.new_full((size,), -torch.inf).scatter_reduce(0, index, lowest, "amax")
    relative = torch.where(votes, scores - largest[index], 0.0)
    mean = relative.new_zeros(size).index_add(0, index, relative) / count.clamp(min=1)
    return torch.where(votes, relative - mean[index], 0.0), votes, index, count


def _std(centred: Tensor, index: Tensor, count: Tensor) -> Tensor:
    """Return for every row the unbiased standard deviation of its group, 0 for a group of one."""
    squares = centred.new_zeros(count.shape).index_add(0, index, centred.square())
    return (squares / (count - 1).clamp(min=1)).sqrt()[index]


def _pack(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Give the order that brings each row's real tokens to its front, and the mask in that order."""
    order = torch.argsort((~mask).to(torch.uint8), dim=-1, stable=True)
    return order, mask.gather(-1, order)


def _unpack(packed: Tensor, order: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, torch.zeros_like(packed).scatter(-1, order, packed), 0.0)


def _discounted_suffix_sum(x: Tensor, discount: float) -> Tensor:
    """Compute y_t = x_t + discount * y_{t+1} along the last dimension by doubling, in log2(T) passes."""
    step, total = 1, x.shape[-1]
    while step < total:
        x = x + discount**step * torch.nn.functional.pad(x[..., step:], (0, step))
        step *= 2
    return x
