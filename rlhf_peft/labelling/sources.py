"""Pairs that a trained run writes: two answers of its policy, or one of the policy and one of the reference."""

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
    """The run's name and its policy's digest: a run that is begun anew under its name is another policy."""
    file = opened.path / ADAPTERS / POLICY / ADAPTER_FILE
    return f"{opened.recipe.name} {hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"


def _written(
    opened: Opened, registry: Registry, prompts: Sequence[Any], role: str, each: int, seed: int, most: int
) -> tuple[list[list[str]], list[list[dict[str, float]]]]:
    """Of each prompt, so many answers of a role, and what each reward head says of them."""
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
    texts, said = [], []
    for first in range(0, len(requests), each):
        rows = range(first, first + each)
        texts.append([view.decode(rollout.completion_ids(i)) for i in rows])
        said.append([{name: float(values[i]) for name, values in batch.heads.items()} for i in rows])
    return texts, said


def sampled(
    opened: Opened,
    registry: Registry,
    prompts: Sequence[Any],
    *,
    each: int = 4,
    seed: int = 0,
    most: int = 256,
) -> list[Pair]:
    """Of each prompt the two answers on whose order the reward ensemble disagrees most.

    Disagreement about a pair is the standard deviation over the heads of r_1 - r_2 (each head's rewards scaled to
    variance 1): what a judgement would settle. With fewer than two heads, the two answers whose rewards are nearest;
    with none, the first two that differ.
    """
    opened.need(reference=False)
    texts, said = _written(opened, registry, prompts, POLICY, each, seed, most)
    scale = _scales(said)
    found = []
    for prompt, answers, scores in zip(prompts, texts, said, strict=True):
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
            wrote = (POLICY, POLICY, value, source_of(opened))
            tools = tools_in_row(prompt.columns)
            found.append(Pair(prompt.columns["prompt"], answers[i], answers[j], *wrote, tools=tools))
    return found


def _scales(said: Sequence[Sequence[dict[str, float]]]) -> dict[str, float]:
    names = list(said[0][0]) if said and said[0] else []
    scales = {}
    for name in names:
        values = torch.tensor([row[name] for rows in said for row in rows])
        scales[name] = max(float(values.std()) if len(values) > 1 else 1.0, 1e-6)
    return scales


def blind(
    opened: Opened, registry: Registry, prompts: Sequence[Any], *, seed: int = 0, most: int = 256
) -> list[Pair]:
    """Of each prompt an answer of the policy and one of the reference; equal ones are left out."""
    opened.need()
    ours, _ = _written(opened, registry, prompts, POLICY, 1, seed, most)
    theirs, _ = _written(opened, registry, prompts, REFERENCE, 1, seed, most)
    return [
        Pair(
            prompt.columns["prompt"],
            mine[0],
            other[0],
            POLICY,
            REFERENCE,
            source=source_of(opened),
            tools=tools_in_row(prompt.columns),
        )
        for prompt, mine, other in zip(prompts, ours, theirs, strict=True)
        if mine[0].strip() != other[0].strip()
    ]
