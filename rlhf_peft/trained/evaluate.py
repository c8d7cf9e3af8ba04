"""Evaluates a run's policy against its reference on held-out prompts: rewards, win rate, KL and length."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from .. import maths
from ..engine import POLICY, REFERENCE
from ..errors import UsageError
from ..kit.sampling.options import SamplingOptions
from ..recipe import DatasetSource, Recipe, RewardEntry, RlStage
from ..registry import DEFAULT_SAMPLER, Registry
from ..session.policy_view import BaseView
from ..session.sampling import prompts_at_once, sample
from ..session.token_budget import TokenBudget
from ..stages.rl.evaluate import ScoreContext
from ..stages.rl.forwards import RoleForwards, RoleNeeds
from ..stages.rl.rewards import Rewards
from ..types import Batch, Request, Rollout
from .opened import Opened
from .prompts import last_rl, prompts_of

NAME = "eval"


@dataclass(frozen=True, slots=True)
class Measured:
    """A mean over prompts with its 95 % interval.

    Attributes:
        policy: mean of the policy.
        low: lower end of the interval.
        high: upper end of the interval.
        reference: mean of the reference; None: the metric has none.
    """

    policy: float
    low: float
    high: float
    reference: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        prompts: how many.
        metrics: name to the measured mean and interval.
        samples: one mapping for each prompt, with both answers and their scores.
    """

    prompts: int
    metrics: dict[str, Measured]
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
    sampler: tuple[str, Mapping[str, Any]] | None = None,
) -> Evaluation:
    """Let policy and reference answer the same prompts with the same seeds, and compare the answers.

    Args:
        opened: the run.
        registry: makes dataset, sampler and rewards.
        dataset: prompts; default: what the run's last RL stage holds out.
        split: of the dataset.
        rewards: that score the answers; default: the last RL stage's.
        size: most prompts.
        seed: of the answers.
        sampler: name and options of the sampler; default: see `sampler_of`.

    Raises:
        UsageError: the run has no RL stage with prompts and rewards, and none are given.
    """
    opened.need()
    stage = last_rl(opened.recipe)
    if stage is None and (dataset is None or not rewards):
        raise UsageError(
            f"{opened.path}: has no RL stage that says what to measure. Give --dataset and --reward or --rewards."
        )
    name, options = sampler or sampler_of(opened.recipe)
    completion_sampler = registry.make("samplers", name, options)
    most = completion_sampler.params.max_new_tokens
    prompts = prompts_of(
        opened, registry, what=NAME, dataset=dataset, split=split, size=size, max_new_tokens=most
    )
    entries = list(rewards) or _rewards(stage)
    with ExitStack() as stack:
        stack.callback(completion_sampler.close)
        reward_set = Rewards(registry, entries, opened.base, stage=NAME, reachable=False)
        stack.callback(reward_set.close)
        answers = _answers_of_both(opened, completion_sampler, prompts, reward_set, seed)
    return _summary(prompts, answers, seed)


def _rewards(stage: RlStage | None) -> list[RewardEntry]:
    """The rewards that a stage trains on, and those that it only measures, with weight 0."""
    if stage is None:
        return []
    return [*stage.rewards, *(entry.model_copy(update={"weight": 0.0}) for entry in stage.eval.rewards)]


def sampler_of(recipe: Recipe, choice: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Name and options of the sampler that writes a run's answers.

    Args:
        recipe: of the run.
        choice: a sampler's `name` and options. Sampling options that it leaves out, such as the temperature, are those
            of the run's last RL stage, and so are all options where that stage uses the same sampler.

    Returns:
        The sampler of the last RL stage where there is no choice; `DEFAULT_SAMPLER` where there is no RL stage either.
    """
    stage = last_rl(recipe)
    name, options = (
        (DEFAULT_SAMPLER, {}) if stage is None else (stage.sampler.name, dict(stage.sampler.options))
    )
    if choice is None:
        return name, options
    chosen = {key: value for key, value in choice.items() if key != "name"}
    if choice["name"] != name:
        options = {key: value for key, value in options.items() if key in SamplingOptions.model_fields}
    return str(choice["name"]), {**options, **chosen}


@dataclass(slots=True)
class _Answers:
    """The answers to N prompts: row 2i of the policy, row 2i + 1 of the reference; each pair is one group.

    Attributes:
        batch: 2N rows.
        texts: 2N completions.
        kl: [2N], log-probability ratio of the policy to the reference, summed over each completion.
    """

    batch: Batch
    texts: list[str]
    kl: torch.Tensor


def _seed(*stream: str | int) -> int:
    return zlib.crc32("/".join(map(str, stream)).encode())


def _answers_of_both(
    opened: Opened, sampler: Any, prompts: Sequence[Any], rewards: Rewards, seed: int
) -> _Answers:
    """Sample both roles' answers with the same seeds, and score them together."""
    base = opened.base
    generator = lambda: torch.Generator().manual_seed(_seed(NAME, seed))  # noqa: E731
    budget = TokenBudget(NAME, opened.recipe.model.tokens_per_forward)
    forwards = RoleForwards(base, None, sampler.params.temperature, budget)
    requests = [
        Request(prompt.ids, i, _seed(NAME, seed, i), sampler.params, columns=prompt.columns)
        for i, prompt in enumerate(prompts)
    ]
    parts = []
    for version, role in enumerate((POLICY, REFERENCE)):
        view = BaseView(base, role)
        sampler.sync(view, version)
        context = ScoreContext(forwards, rewards, view, generator(), 0)
        parts.append(sample(sampler, requests, prompts_at_once(NAME), context))
    rollout = Rollout.cat(parts, groups="keep")
    batch = Batch.of(rollout.rows([row for i in range(len(prompts)) for row in (i, len(prompts) + i)]))
    decode = BaseView(base).decode
    forwards.fill(
        batch, RoleNeeds(policy=True, reference=True, heads=rewards.heads, role_logps=rewards.logp_roles)
    )
    rewards.score(batch, step=0, generator=generator(), decode=decode)
    assert batch.old_logps is not None and batch.ref_logps is not None
    kl = maths.masked_sum(batch.old_logps - batch.ref_logps, batch.mask, dim=-1)
    texts = [decode(batch.rollout.completion_ids(i)) for i in range(len(batch))]
    return _Answers(batch, texts, kl)


def _summary(prompts: Sequence[Any], answers: _Answers, seed: int) -> Evaluation:
    generator = torch.Generator().manual_seed(seed)

    def measured(values: torch.Tensor, others: torch.Tensor | None = None) -> Measured:
        """The mean and interval over the prompts on which both sides have a value."""
        known = ~values.isnan() if others is None else ~(values.isnan() | others.isnan())
        if not bool(known.any()):
            return Measured(float("nan"), float("nan"), float("nan"))
        low, high = maths.bootstrap_interval(values[known], generator)
        other = None if others is None else float(others[known].mean())
        return Measured(float(values[known].mean()), low, high, other)

    def wins(values: torch.Tensor) -> Measured:
        """The share of prompts on which the policy's answer has the higher value; a tie counts half."""
        return measured((torch.sign(values[0::2] - values[1::2]) + 1) / 2)

    scores, components = answers.batch.scores, answers.batch.components
    metrics = {"reward": measured(scores[0::2], scores[1::2]), "win rate": wins(scores)}
    for name, values in components.items() if len(components) > 1 else ():
        metrics[name] = measured(values[0::2], values[1::2])
        metrics[f"win rate by {name}"] = wins(values)
    metrics["KL to the reference"] = measured(answers.kl[0::2])
    lengths = answers.batch.rollout.completion_lengths.float()
    metrics["tokens"] = measured(lengths[0::2], lengths[1::2])
    ended = torch.tensor([float(word != "length") for word in answers.batch.rollout.finish])
    metrics["ended by themselves"] = measured(ended[0::2], ended[1::2])
    samples = [
        {
            "prompt": prompt.columns["prompt"],
            "policy": answers.texts[2 * i],
            "reference": answers.texts[2 * i + 1],
            "score": float(scores[2 * i]),
            "reference_score": float(scores[2 * i + 1]),
        }
        for i, prompt in enumerate(prompts)
    ]
    return Evaluation(len(prompts), metrics, samples)
