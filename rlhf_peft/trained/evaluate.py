"""A run's policy beside its reference on held-out prompts: rewards, win rate, KL, length, with intervals."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import maths
from ..data import Encoder, encode_prompts, require
from ..engine import POLICY, REFERENCE
from ..errors import UsageError
from ..recipe import DatasetSource, RewardEntry, RlStage
from ..registry import Registry
from ..stages import read_source
from ..stages.memory import Budget
from ..stages.rl.collect import Judge
from ..stages.rl.forwards import Scorer
from ..stages.rl.rewarding import Rewards, reward_batch
from ..stages.sampling import prompts_at_once, sample
from ..stages.view import BaseView
from ..types import Request, Rollout
from .opened import Opened

NAME = "eval"


@dataclass(frozen=True, slots=True)
class Measured:
    """A mean over prompts with its 95 % interval.

    Attributes:
        policy: of the policy.
        low: lower end.
        high: upper end.
        reference: the same of the reference; None: it says nothing of it.
    """

    policy: float
    low: float
    high: float
    reference: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        prompts: how many.
        figures: name to what was measured.
        samples: prompt, both answers, their scores.
    """

    prompts: int
    figures: dict[str, Measured]
    samples: list[dict[str, Any]]


def evaluate(
    opened: Opened,
    registry: Registry,
    *,
    dataset: DatasetSource | None = None,
    split: str | None = None,
    rewards: Sequence[RewardEntry] = (),
    size: int = 256,
    seed: int = 0,
) -> Evaluation:
    """Let policy and reference answer the same prompts with the same seeds.

    Args:
        opened: the run.
        registry: makes dataset, sampler and rewards.
        dataset: prompts; default: what the run's last RL stage holds out.
        split: of the dataset.
        rewards: what scores; default: the last RL stage's.
        size: most prompts.
        seed: of the answers.

    Raises:
        UsageError: the run says neither prompts nor rewards, and none are given.
    """
    stage = next((s for s in reversed(opened.recipe.stages) if isinstance(s, RlStage)), None)
    if stage is None and (dataset is None or not rewards):
        raise UsageError(
            f"{opened.path}: has no RL stage that says what to measure. Give --dataset and --reward or --rewards."
        )
    source, split = _source(stage, dataset, split)
    name = source.path or str(source.name)
    rows = read_source(source, registry, split, stage=NAME)
    require(rows, "rl", name, stage=NAME)
    sampler = registry.make("samplers", *(_sampler(stage)))
    encoder = Encoder(
        opened.base.tokenizer,
        chat_template_kwargs=dict(opened.recipe.model.chat_template_kwargs),
        system=source.system,
        max_length=opened.base.max_length,
    )
    prompts = encode_prompts(
        rows,
        encoder,
        max_new_tokens=sampler.params.max_new_tokens,
        on_bad_row=source.on_bad_row,
        source=name,
        stage=NAME,
    )[:size]
    entries = list(rewards) or list(stage.rewards if stage else ())
    given = Rewards(registry, entries, opened.base, stage=NAME)
    budget = Budget(NAME, opened.recipe.model.tokens_per_forward)
    scorer = Scorer(opened.base, None, sampler.params.temperature, budget)
    try:
        sides = [
            _answers(opened, role, sampler, prompts, given, scorer, seed) for role in (POLICY, REFERENCE)
        ]
    finally:
        given.close()
        sampler.close()
    return _summary(prompts, sides[0], sides[1], seed)


def _source(
    stage: RlStage | None, dataset: DatasetSource | None, split: str | None
) -> tuple[DatasetSource, str | None]:
    if dataset is not None:
        return dataset, split
    assert stage is not None
    return stage.eval.dataset or stage.dataset, split or stage.eval.split


def _sampler(stage: RlStage | None) -> tuple[str, dict[str, Any]]:
    return ("cached", {}) if stage is None else (stage.sampler.name, stage.sampler.options)


@dataclass(slots=True)
class _Side:
    """One role's answers: texts, scores [N], components, KL [N] and tokens [N]."""

    texts: list[str]
    scores: torch.Tensor
    components: dict[str, torch.Tensor]
    kl: torch.Tensor
    rollout: Rollout


def _seed(*stream: str | int) -> int:
    return zlib.crc32("/".join(map(str, stream)).encode())


def _answers(
    opened: Opened,
    role: str,
    sampler: Any,
    prompts: Sequence[Any],
    rewards: Rewards,
    scorer: Scorer,
    seed: int,
) -> _Side:
    view = BaseView(opened.base, role)
    generator = lambda: torch.Generator().manual_seed(_seed(NAME, seed))  # noqa: E731
    sampler.sync(view, 0 if role == POLICY else 1)
    requests = [
        Request(p.ids, i, _seed(NAME, seed, i), sampler.params, columns=p.columns)
        for i, p in enumerate(prompts)
    ]
    rollout = sample(sampler, requests, prompts_at_once(NAME), Judge(scorer, rewards, view, generator(), 0))
    said = scorer(rollout, values=False, heads=rewards.heads, readers=rewards.logp_roles)
    assert said.logps is not None and said.ref_logps is not None
    batch = reward_batch(rollout, said.heads, 0, generator(), view.decode, said.readings)
    scoring = rewards.score(batch)
    mask = torch.nn.utils.rnn.pad_sequence(rollout.action_mask, batch_first=True, padding_value=False)
    kl = maths.masked_sum(said.logps - said.ref_logps, mask, dim=-1)
    return _Side(batch.texts, scoring.scores, scoring.components, kl, rollout)


def _summary(prompts: Sequence[Any], policy: _Side, reference: _Side, seed: int) -> Evaluation:
    generator = torch.Generator().manual_seed(seed)

    def measured(values: torch.Tensor, others: torch.Tensor | None = None) -> Measured:
        real = values[~values.isnan()]
        if not len(real):
            return Measured(float("nan"), float("nan"), float("nan"))
        low, high = maths.bootstrap_interval(real, generator)
        return Measured(float(real.mean()), low, high, None if others is None else float(others.nanmean()))

    figures = {"reward": measured(policy.scores, reference.scores)}
    for name, values in policy.components.items():
        figures[f"rewards/{name}"] = measured(values, reference.components[name])
    difference = policy.scores - reference.scores
    wins = torch.where(difference.isnan(), float("nan"), (torch.sign(difference) + 1) / 2)
    figures["win rate against the reference"] = measured(wins)
    for name, values in policy.components.items():
        gap = values - reference.components[name]
        figures[f"win rate by {name}"] = measured(
            torch.where(gap.isnan(), float("nan"), (torch.sign(gap) + 1) / 2)
        )
    figures["KL to the reference"] = measured(policy.kl)
    lengths = [side.rollout.completion_lengths.float() for side in (policy, reference)]
    figures["tokens"] = measured(*lengths)
    ended = [
        torch.tensor([float(word != "length") for word in side.rollout.finish])
        for side in (policy, reference)
    ]
    figures["ended by themselves"] = measured(*ended)
    samples = [
        {
            "prompt": prompt.columns["prompt"],
            "policy": policy.texts[i],
            "reference": reference.texts[i],
            "score": float(policy.scores[i]),
            "reference_score": float(reference.scores[i]),
        }
        for i, prompt in enumerate(prompts)
    ]
    return Evaluation(len(prompts), figures, samples)
