"""Makes pairs with a trained run: two answers of its policy, or one of the policy and one of the reference."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any

import torch

from ..data.calls import tools_in_row
from ..engine import POLICY, REFERENCE
from ..engine.artifacts import ADAPTER_FILE
from ..registry import DEFAULT_SAMPLER, Registry
from ..session.policy_view import BaseView
from ..session.sampling import prompts_at_once, sample
from ..session.token_budget import TokenBudget
from ..stages.rl.forwards import RoleForwards, RoleNeeds
from ..trained import Opened
from ..trained.opened import ADAPTERS
from ..types import Batch, Request
from .store import Pair

STAGE = "label"


def source_of(opened: Opened) -> str:
    """The run's name and the digest of its policy, so that a later run with the same name is another source."""
    file = opened.path / ADAPTERS / POLICY / ADAPTER_FILE
    return f"{opened.recipe.name} {hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"


def _sample_role(
    opened: Opened, registry: Registry, prompts: Sequence[Any], role: str, each: int, seed: int, most: int
) -> tuple[list[list[str]], list[list[dict[str, float]]]]:
    """Sample answers of a role, and score them with each reward head.

    Args:
        opened: the trained run.
        registry: makes the sampler.
        prompts: encoded prompts.
        role: role that answers.
        each: number of answers per prompt.
        seed: seed of the sampling.
        most: most tokens of an answer.

    Returns:
        For each prompt, its answers; and for each answer, its score by each head.
    """
    sampler = registry.make("samplers", DEFAULT_SAMPLER, {"max_new_tokens": most})
    view = BaseView(opened.base, role)
    sampler.sync(view, 0)
    requests = [
        Request(p.ids, i, zlib.crc32(f"{seed}/{role}/{i}/{k}".encode()), sampler.params, columns=p.columns)
        for i, p in enumerate(prompts)
        for k in range(each)
    ]
    rollout = sample(sampler, requests, prompts_at_once(STAGE))
    budget = TokenBudget(STAGE, opened.recipe.model.tokens_per_forward)
    batch = Batch.of(rollout)
    RoleForwards(opened.base, None, 1.0, budget).fill(batch, RoleNeeds(heads=tuple(opened.rewards)))
    sampler.close()
    texts, scores = [], []
    for first in range(0, len(requests), each):
        rows = range(first, first + each)
        texts.append([view.decode(rollout.completion_ids(i)) for i in rows])
        scores.append([{name: float(values[i]) for name, values in batch.heads.items()} for i in rows])
    return texts, scores


def disagreed_pairs(
    opened: Opened,
    registry: Registry,
    prompts: Sequence[Any],
    *,
    each: int = 4,
    seed: int = 0,
    most: int = 256,
) -> list[Pair]:
    """For each prompt, the two answers whose order the reward ensemble disagrees on most.

    The disagreement about a pair is the standard deviation over the heads of r_1 - r_2 (each head's rewards scaled
    to variance 1): a judgement would settle it. With fewer than two heads, these are the two answers with the
    closest rewards; without any head, the first two that differ.
    """
    opened.need(reference=False)
    texts, scores_of_prompts = _sample_role(opened, registry, prompts, POLICY, each, seed, most)
    scale = _scales(scores_of_prompts)
    pairs = []
    for prompt, answers, scores in zip(prompts, texts, scores_of_prompts, strict=True):
        best: tuple[float, int, int] | None = None
        for i in range(each):
            for j in range(i + 1, each):
                if answers[i].strip() == answers[j].strip():
                    continue
                gaps = torch.tensor([(scores[i][name] - scores[j][name]) / scale[name] for name in scale])
                value = float(gaps.std()) if len(gaps) > 1 else -float(gaps.abs().sum()) if len(gaps) else 0.0
                if best is None or value > best[0]:
                    best = (value, i, j)
        if best is not None:
            value, i, j = best
            origin = (POLICY, POLICY, value, source_of(opened))
            tools = tools_in_row(prompt.columns)
            pairs.append(Pair(prompt.columns["prompt"], answers[i], answers[j], *origin, tools=tools))
    return pairs


def _scales(scores_of_prompts: Sequence[Sequence[dict[str, float]]]) -> dict[str, float]:
    """Standard deviation of each head's scores over all answers."""
    names = list(scores_of_prompts[0][0]) if scores_of_prompts and scores_of_prompts[0] else []
    scales = {}
    for name in names:
        values = torch.tensor([row[name] for rows in scores_of_prompts for row in rows])
        scales[name] = max(float(values.std()) if len(values) > 1 else 1.0, 1e-6)
    return scales


def blind_pairs(
    opened: Opened, registry: Registry, prompts: Sequence[Any], *, seed: int = 0, most: int = 256
) -> list[Pair]:
    """For each prompt, one answer of the policy and one of the reference; equal answers are left out."""
    opened.need()
    of_policy, _ = _sample_role(opened, registry, prompts, POLICY, 1, seed, most)
    of_reference, _ = _sample_role(opened, registry, prompts, REFERENCE, 1, seed, most)
    return [
        Pair(
            prompt.columns["prompt"],
            policy_texts[0],
            reference_texts[0],
            POLICY,
            REFERENCE,
            source=source_of(opened),
            tools=tools_in_row(prompt.columns),
        )
        for prompt, policy_texts, reference_texts in zip(prompts, of_policy, of_reference, strict=True)
        if policy_texts[0].strip() != reference_texts[0].strip()
    ]
