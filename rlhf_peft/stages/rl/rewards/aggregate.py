"""The sum of a stage's rewards, and its rule for completions that did not end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....recipe.schema import RlStage
from ....types import RewardBatch, Scores
from .bound_reward import Member


@dataclass(slots=True)
class Scoring:
    """What the rewards gave.

    Attributes:
        scores: [N] weighted sum; NaN where all abstained.
        token_scores: [N, T] weighted sum of per-token rewards, or None.
        components: reward name to [N], as the reward gave it.
        metrics: figures that the rewards logged.
        extra: columns to show beside the samples.
    """

    scores: Tensor
    token_scores: Tensor | None = None
    components: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def rows(self, index: Sequence[int]) -> Scoring:
        """Some of the rows, with the figures of all; per-token scores are left out."""
        chosen = list(index)
        return Scoring(
            scores=self.scores[chosen],
            components={name: values[chosen] for name, values in self.components.items()},
            metrics=self.metrics,
            extra={name: [values[i] for i in chosen] for name, values in self.extra.items()},
        )

    @classmethod
    def cat(cls, parts: Sequence[Scoring]) -> Scoring:
        """The rows of several, in order; per-token scores are left out.

        Figures are averaged over the rows of the parts that have them; a share of failures counts as 0 elsewhere.
        """
        if len(parts) == 1:
            return parts[0]
        counts = [len(part.scores) for part in parts]
        names = dict.fromkeys(name for part in parts for name in part.metrics)
        there = {
            name: [
                (c, p.metrics.get(name, 0.0))
                for c, p in zip(counts, parts, strict=True)
                if name in p.metrics or name.endswith(("/abstained", "/failed"))
            ]
            for name in names
        }
        return cls(
            scores=torch.cat([part.scores for part in parts]),
            components={
                name: torch.cat([part.components[name] for part in parts]) for name in parts[0].components
            },
            metrics={name: sum(c * v for c, v in of) / sum(c for c, _ in of) for name, of in there.items()},
            extra={
                name: [v for c, p in zip(counts, parts, strict=True) for v in p.extra.get(name, [None] * c)]
                for name in dict.fromkeys(name for part in parts for name in part.extra)
            },
        )


def add_up(
    members: Sequence[Member], batch: RewardBatch, given: Mapping[str, Scores], stage: RlStage | None = None
) -> Scoring:
    """The weighted sum of the scores, each clipped and normalised as its entry says.

    score_i = sum_k w_k scale_k(s_ki),  rewards that abstain from row i left out;  NaN where all do

    A reward of weight 0 is only measured: it does not stand in for one that abstains.

    Args:
        members: the rewards.
        batch: what was scored.
        given: reward name to its scores.
        stage: whose rule for completions that did not end is applied; None: none.
    """
    out = Scoring(scores=torch.zeros(len(batch)))
    abstained = torch.ones(len(batch), dtype=torch.bool)
    weighed = any(member.weight for member in members)
    for member in members:
        scores = given[member.name]
        out.components[member.name] = scores.row
        scaled = member.scale(scores.row, batch.rollout.group)
        out.scores += member.weight * scaled.nan_to_num(0.0)
        if member.weight or not weighed:
            abstained &= scores.row.isnan()
        if scores.token is not None:
            token = member.weight * scores.token
            out.token_scores = token if out.token_scores is None else out.token_scores + token
        _log(out, member.name, scores)
    if stage is not None:
        out.scores = without_end(out.scores, batch.finish, stage.missing_eos_penalty, stage.missing_eos_score)
    out.scores[abstained] = float("nan")
    return out


def _log(out: Scoring, name: str, scores: Scores) -> None:
    out.metrics.update({f"rewards/{name}/{key}": value for key, value in scores.metrics.items()})
    out.extra.update({f"{name}/{key}": values for key, values in scores.extra.items()})
    share = float(scores.row.isnan().float().mean())
    if share:
        out.metrics[f"rewards/{name}/abstained"] = share


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
