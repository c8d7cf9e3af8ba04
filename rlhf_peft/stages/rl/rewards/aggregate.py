"""The sum of a stage's rewards, and its rule for completions that did not end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ....recipe.schema import RlStage
from ....types import Batch, Scores
from .bound_reward import BoundReward


def add_up(
    rewards: Sequence[BoundReward], batch: Batch, given: Mapping[str, Scores], stage: RlStage | None = None
) -> None:
    """Write into the batch the weighted sum of the scores, each clipped and normalised as its entry says.

        score_i = sum_k w_k normalize_k(s_ki),  rewards that abstain from row i left out;  NaN where all do

    A reward of weight 0 is only measured: it does not stand in for one that abstains. Per-token scores are only
    weighted.

    Args:
        rewards: of the stage.
        batch: gets `scores`, `token_scores`, `components`, `metrics` and `extra`.
        given: reward name to its scores.
        stage: whose rule for completions that did not end is applied; None: none.
    """
    total, token_total = torch.zeros(len(batch)), None
    abstained = torch.ones(len(batch), dtype=torch.bool)
    any_weight = any(reward.weight for reward in rewards)
    for reward in rewards:
        scores = given[reward.name]
        batch.components[reward.name] = scores.row
        normalized = reward.normalizer.apply(scores.row, batch.rollout.group)
        total += reward.weight * normalized.nan_to_num(0.0)
        if reward.weight or not any_weight:
            abstained &= scores.row.isnan()
        if scores.token is not None:
            token = reward.weight * scores.token
            token_total = token if token_total is None else token_total + token
        _log(batch, reward.name, scores)
    if stage is not None:
        total = without_end(total, batch.rollout.finish, stage.missing_eos_penalty, stage.missing_eos_score)
    total[abstained] = float("nan")
    batch.scores, batch.token_scores = total, token_total


def _log(batch: Batch, name: str, scores: Scores) -> None:
    batch.metrics.update({f"rewards/{name}/{key}": value for key, value in scores.metrics.items()})
    batch.extra.update({f"{name}/{key}": values for key, values in scores.extra.items()})
    share = float(scores.row.isnan().float().mean())
    if share:
        batch.metrics[f"rewards/{name}/abstained"] = share


def without_end(scores: Tensor, finish: Sequence[str], penalty: float | None, score: float | None) -> Tensor:
    """Penalise or replace the scores of completions that did not end.

    Args:
        scores: [N].
        finish: N words; "length" is a completion that did not end.
        penalty: subtracted.
        score: put in place.

    Returns:
        [N].
    """
    cut = torch.tensor([word == "length" for word in finish])
    if score is not None:
        return torch.where(cut, score, scores)
    return torch.where(cut, scores - penalty, scores) if penalty is not None else scores
