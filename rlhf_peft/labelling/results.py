"""What judgements come to: preferences to train on, agreement between people, and who won a blind test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from ..engine import POLICY, REFERENCE
from ..maths import bootstrap_interval
from .store import Judgement, Pair

WORTH = {"a": 1.0, "tie": 0.5, "b": 0.0}
"""What a judgement says of a: the probability that it is the better one."""


def preferences(pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Rows in TRL's preference format, one a judged pair.

    Several people make a probability: `chosen_prob` is the share that preferred `chosen`, ties counting half. A pair
    of which that share is a half says nothing and is left out. `notes` holds what people wrote beside their choices.
    """
    said = by_pair(judgements)
    rows = []
    for pair in pairs:
        given = [WORTH[j.choice] for j in said.get(pair.id, ()) if j.choice in WORTH]
        if not given:
            continue
        share = sum(given) / len(given)
        if share == 0.5:
            continue
        chosen, rejected = (pair.a, pair.b) if share > 0.5 else (pair.b, pair.a)
        row: dict[str, Any] = {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}
        if isinstance(pair.prompt, list):
            row |= {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
        row |= {} if pair.tools is None else {"tools": pair.tools}
        notes = [j.note for j in said.get(pair.id, ()) if j.note.strip()]
        rows.append({**row, "chosen_prob": max(share, 1 - share), "annotators": len(given), "notes": notes})
    return rows


def by_pair(judgements: Sequence[Judgement]) -> dict[int, list[Judgement]]:
    """Pair to what was said of it."""
    found: dict[int, list[Judgement]] = {}
    for judgement in judgements:
        found.setdefault(judgement.pair, []).append(judgement)
    return found


def cohens_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """How far two people agree beyond chance.

    (p_o - p_e) / (1 - p_e), p_o the share of agreement, p_e = sum_c p_1(c) p_2(c). Cohen 1960, A coefficient of
    agreement for nominal scales, equation 1.

    Args:
        first: what one said, one word a pair.
        second: what the other said of the same pairs.

    Returns:
        1 for full agreement, 0 for what chance gives; 1 where both said one and the same word throughout.

    Raises:
        ValueError: lengths differ, or there is nothing.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} judgements cannot be compared")
    count = len(first)
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / count
    words = set(first) | set(second)
    chance = sum(first.count(word) / count * (second.count(word) / count) for word in words)
    return 1.0 if chance == 1.0 else (agreed - chance) / (1 - chance)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of two people.

    Attributes:
        people: their names.
        pairs: that both judged.
        agreed: share of them on which they said the same.
        kappa: Cohen's.
    """

    people: tuple[str, str]
    pairs: int
    agreed: float
    kappa: float


def agreements(judgements: Sequence[Judgement]) -> list[Agreement]:
    """Of every two people who judged a pair in common; skipped pairs are left out."""
    said: dict[str, dict[int, str]] = {}
    for judgement in judgements:
        if judgement.choice in WORTH:
            said.setdefault(judgement.annotator, {})[judgement.pair] = judgement.choice
    found = []
    for one, other in combinations(sorted(said), 2):
        shared = sorted(said[one].keys() & said[other].keys())
        if shared:
            first, second = [said[one][i] for i in shared], [said[other][i] for i in shared]
            agreed = sum(a == b for a, b in zip(first, second, strict=True)) / len(shared)
            found.append(Agreement((one, other), len(shared), agreed, cohens_kappa(first, second)))
    return found


@dataclass(frozen=True, slots=True)
class BlindTest:
    """What people made of a policy and its reference.

    Attributes:
        source: the run and its adapter.
        pairs: that anybody has judged, not only skipped.
        judgements: of them.
        rate: share of pairs in which the policy's answer was preferred; a tie counts half, several people are averaged.
        low: lower end of the 95 % interval, by a bootstrap over pairs.
        high: upper end.
    """

    source: str
    pairs: int
    judgements: int
    rate: float
    low: float
    high: float


def blind_tests(pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> list[BlindTest]:
    """How often a policy was preferred to its reference, one test for each policy."""
    said = by_pair(judgements)
    worth: dict[str, list[list[float]]] = {}
    for pair in pairs:
        given = [WORTH[judgement.choice] for judgement in said.get(pair.id, ()) if judgement.choice in WORTH]
        if given and {pair.from_a, pair.from_b} == {POLICY, REFERENCE}:
            mine = given if pair.from_a == POLICY else [1 - value for value in given]
            worth.setdefault(pair.source, []).append(mine)
    found = []
    for source, each in worth.items():
        means = torch.tensor([sum(values) / len(values) for values in each])
        low, high = bootstrap_interval(means, torch.Generator().manual_seed(0))
        found.append(BlindTest(source, len(each), sum(map(len, each)), float(means.mean()), low, high))
    return found
