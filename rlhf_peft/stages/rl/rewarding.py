"""Runs a stage's rewards on a rollout and adds them up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...engine import SharedBase
from ...errors import RewardError, UsageError
from ...hookspecs import Reward
from ...recipe.schema import RewardEntry, RlStage
from ...registry import Registry
from ...types import RewardBatch, Rollout, Scores


@dataclass(slots=True)
class Scoring:
    """What the rewards gave.

    Attributes:
        scores: [N] weighted sum; NaN where all abstained.
        token_scores: [N, T] weighted sum of per-token rewards, or None.
        components: reward name to [N], unweighted.
        metrics: figures that the rewards logged.
        extra: columns to show beside the samples.
    """

    scores: Tensor
    token_scores: Tensor | None = None
    components: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)


class Rewards:
    """Several named rewards with weights.

    Args:
        registry: makes them by name.
        entries: the recipe's.
        base: whose heads they may ask for.
    """

    def __init__(self, registry: Registry, entries: Sequence[RewardEntry], base: SharedBase) -> None:
        self.weights = {entry.name: float(entry.weight) for entry in entries}
        if len(self.weights) < len(entries):
            raise UsageError("rewards: one name is listed twice; give each reward once.")
        self.rewards: dict[str, Reward] = {
            entry.name: registry.make("rewards", entry.name, entry.options) for entry in entries
        }
        self._heads = {name: tuple(_heads(base, reward)) for name, reward in self.rewards.items()}
        for name, reward in self.rewards.items():
            if reward.roles and not self._heads[name]:
                raise UsageError(
                    f"rewards.{name}: needs a reward head and there is none. Put a reward_model stage before this one, "
                    "or name a trained one: init: {reward: runs/my-rm}."
                )

    @property
    def heads(self) -> tuple[str, ...]:
        """Roles whose heads must be run before."""
        return tuple(dict.fromkeys(role for roles in self._heads.values() for role in roles))

    def score(self, batch: RewardBatch, stage: RlStage | None = None) -> Scoring:
        """Run all rewards and add them up; with a stage, apply its rule for completions that did not end.

        Raises:
            RewardError: one raised, timed out, or gave something that is no score.
        """
        given = asyncio.run(self._all(batch))
        out = Scoring(scores=torch.zeros(len(batch)))
        abstained = torch.ones(len(batch), dtype=torch.bool)
        for name, scores in given.items():
            row = scores.row.detach().float().cpu()
            out.components[name] = row
            out.scores += self.weights[name] * row.nan_to_num(0.0)
            abstained &= row.isnan()
            if scores.token is not None:
                token = self.weights[name] * scores.token.detach().float().cpu()
                out.token_scores = token if out.token_scores is None else out.token_scores + token
            out.metrics.update({f"rewards/{name}/{key}": value for key, value in scores.metrics.items()})
            out.extra.update({f"{name}/{key}": values for key, values in scores.extra.items()})
        if stage is not None:
            out.scores = without_end(
                out.scores, batch.finish, stage.missing_eos_penalty, stage.missing_eos_score
            )
        out.scores[abstained] = float("nan")
        return out

    async def _all(self, batch: RewardBatch) -> dict[str, Scores]:
        each = await asyncio.gather(*(self._one(name, batch) for name in self.rewards))
        return dict(zip(self.rewards, each, strict=True))

    async def _one(self, name: str, batch: RewardBatch) -> Scores:
        reward = self.rewards[name]
        heads = {role: batch.heads[role] for role in self._heads[name]}
        own = RewardBatch(
            **{f: getattr(batch, f) for f in RewardBatch.__dataclass_fields__} | {"heads": heads}
        )
        try:
            scores = await asyncio.wait_for(reward.score(own), reward.timeout)
        except TimeoutError as error:
            raise RewardError(
                f"reward {name} took longer than {reward.timeout} s at step {batch.step}."
            ) from error
        if scores.row.shape != (len(batch),):
            raise RewardError(
                f"reward {name} gave {scores.row.numel()} scores for {len(batch)} completions at rl step {batch.step}."
            )
        if scores.row.isinf().any():
            row = int(scores.row.isinf().nonzero()[0])
            raise RewardError(
                f"reward {name} gave an infinite score for row {row} at rl step {batch.step}; NaN abstains, anything "
                "else must be finite."
            )
        return scores


def _heads(base: SharedBase, reward: Reward) -> list[str]:
    return [
        role
        for role in base.roles
        for prefix in reward.roles
        if role == prefix or role.startswith(f"{prefix}-")
    ]


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


def reward_batch(
    rollout: Rollout, heads: dict[str, Tensor], step: int, generator: torch.Generator, decode: Any
) -> RewardBatch:
    """What rewards see of a rollout; completions are text, or messages where the prompt is messages."""
    ids = [rollout.completion_ids(i) for i in range(len(rollout))]
    prompts = rollout.columns["prompt"]
    texts = [decode(row) for row in ids]
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    return RewardBatch(
        prompts=prompts,
        completions=completions,
        completion_ids=ids,
        finish=rollout.finish,
        columns=rollout.columns,
        rollout=rollout,
        heads=heads,
        step=step,
        generator=generator,
    )
