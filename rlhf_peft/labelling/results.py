"""Evaluates judgements: preferences to train on, agreement between people, and win rates of blind tests."""

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
"""For each choice, the probability that completion a is the better one."""


def preferences(pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Rows in TRL's preference format, one for each judged pair.

    With several people, `chosen_prob` is the share that preferred `chosen`; ties count half. A pair whose share is
    exactly a half is left out, because it shows no preference. `notes` holds what people wrote beside their
    choices.
    """
    judgements_of = by_pair(judgements)
    rows = []
    for pair in pairs:
        probabilities = [WORTH[j.choice] for j in judgements_of.get(pair.id, ()) if j.choice in WORTH]
        if not probabilities:
            continue
        share = sum(probabilities) / len(probabilities)
        if share == 0.5:
            continue
        chosen, rejected = (pair.a, pair.b) if share > 0.5 else (pair.b, pair.a)
        row: dict[str, Any] = {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}
        if isinstance(pair.prompt, list):
            row |= {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
        row |= {} if pair.tools is None else {"tools": pair.tools}
        notes = [j.note for j in judgements_of.get(pair.id, ()) if j.note.strip()]
        rows.append(
            {**row, "chosen_prob": max(share, 1 - share), "annotators": len(probabilities), "notes": notes}
        )
    return rows


def by_pair(judgements: Sequence[Judgement]) -> dict[int, list[Judgement]]:
    """For each pair's number, its judgements."""
    grouped: dict[int, list[Judgement]] = {}
    for judgement in judgements:
        grouped.setdefault(judgement.pair, []).append(judgement)
    return grouped


def cohens_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Agreement of two people beyond chance.

    (p_o - p_e) / (1 - p_e), p_o the share of agreement, p_e = sum_c p_1(c) p_2(c). Cohen 1960, A coefficient of
    agreement for nominal scales, equation 1.

    Args:
        first: choices of one person, one word for each pair.
        second: choices of the other person for the same pairs.

    Returns:
        1 for full agreement, 0 for agreement by chance; 1 if both always chose the same word.

    Raises:
        ValueError: the lengths differ, or there are no choices.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} judgements cannot be compared")
    count = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / count
    words = set(first) | set(second)
    chance = sum(first.count(word) / count * (second.count(word) / count) for word in words)
    return 1.0 if chance == 1.0 else (observed - chance) / (1 - chance)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two people.

    Attributes:
        people: their names.
        pairs: number of pairs that both judged.
        agreed: share of these pairs on which they made the same choice.
        kappa: Cohen's kappa.
    """

    people: tuple[str, str]
    pairs: int
    agreed: float
    kappa: float


def agreements(judgements: Sequence[Judgement]) -> list[Agreement]:
    """The agreement of every two people who judged some of the same pairs; skipped pairs do not count."""
    choices: dict[str, dict[int, str]] = {}
    for judgement in judgements:
        if judgement.choice in WORTH:
            choices.setdefault(judgement.annotator, {})[judgement.pair] = judgement.choice
    result = []
    for one, other in combinations(sorted(choices), 2):
        shared = sorted(choices[one].keys() & choices[other].keys())
        if shared:
            first, second = [choices[one][i] for i in shared], [choices[other][i] for i in shared]
            agreed = sum(a == b for a, b in zip(first, second, strict=True)) / len(shared)
            result.append(Agreement((one, other), len(shared), agreed, cohens_kappa(first, second)))
    return result


@dataclass(frozen=True, slots=True)
class BlindTest:
    """Result of comparing a policy with its reference.

    Attributes:
        source: the run and its adapter.
        pairs: number of pairs with a judgement other than "skip".
        judgements: number of their judgements.
        rate: share of pairs in which the policy's answer was preferred; a tie counts half, several people are
            averaged.
        low: lower end of the 95 % interval, by a bootstrap over pairs.
        high: upper end of the interval.
    """

    source: str
    pairs: int
    judgements: int
    rate: float
    low: float
    high: float


def blind_tests(pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> list[BlindTest]:
    """Win rates of policies against their references, one test for each policy."""
    judgements_of = by_pair(judgements)
    win_probabilities: dict[str, list[list[float]]] = {}
    for pair in pairs:
        probabilities = [
            WORTH[judgement.choice]
            for judgement in judgements_of.get(pair.id, ())
            if judgement.choice in WORTH
        ]
        if probabilities and {pair.from_a, pair.from_b} == {POLICY, REFERENCE}:
            of_policy = probabilities if pair.from_a == POLICY else [1 - value for value in probabilities]
            win_probabilities.setdefault(pair.source, []).append(of_policy)
    result = []
    for source, of_pairs in win_probabilities.items():
        means = torch.tensor([sum(values) / len(values) for values in of_pairs])
        low, high = bootstrap_interval(means, torch.Generator().manual_seed(0))
        result.append(
            BlindTest(source, len(of_pairs), sum(map(len, of_pairs)), float(means.mean()), low, high)
        )
    return result
