"""`diverse`: draws more completions than were asked for and keeps those of a prompt that differ most.

For each prompt with k requests, `candidates` * k completions are drawn from the policy. The first is kept; then, again
and again, the one whose nearest kept neighbour is farthest. The distance of two completions is the Jaccard distance of
their sets of n-grams. What is kept is no draw from the policy any more (the log-probabilities are the policy's all the
same), so it is for methods that compare or imitate completions: online DPO, rejection sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from rlhf_peft.plugin import LocalOptions, LocalSampler, Register, Request, Rollout, SampleContext, hookimpl

HOOK_API = 1
_STRIDE = 1_000_003
"""Candidates of one request have seeds so far apart."""


class DiverseOptions(LocalOptions):
    """How completions are drawn, and how many of them are kept."""

    candidates: int = Field(4, gt=0, description="Completions drawn for each one that is kept.")
    ngram: int = Field(2, gt=0, description="Tokens in the pieces that completions are compared by.")


class Diverse(LocalSampler):
    """Samples, compares, keeps."""

    Options = DiverseOptions
    name = "diverse"

    def __init__(self, options: DiverseOptions) -> None:
        super().__init__(options)
        self.candidates, self.ngram = options.candidates, options.ngram
        self.provides = frozenset({"logps"})

    def sample(self, requests: Sequence[Request], context: SampleContext | None = None) -> Rollout:
        """One completion for each request.

        Raises:
            SamplerError: no policy was given yet, or a prompt leaves no room for a token.
        """
        asked = [replace(r, seed=r.seed + k * _STRIDE) for r in requests for k in range(self.candidates)]
        drawn = super().sample(asked, context)
        kept: dict[int, int] = {}
        for members in _by_prompt(requests):
            pool = [i * self.candidates + k for i in members for k in range(self.candidates)]
            chosen = spread([drawn.completion_ids(row) for row in pool], len(members), self.ngram)
            kept.update(zip(members, (pool[i] for i in chosen), strict=True))
        return drawn.rows([kept[i] for i in range(len(requests))])


def _by_prompt(requests: Sequence[Request]) -> list[list[int]]:
    """The numbers of the requests of each prompt; rows of different tags are compared apart."""
    members: dict[tuple[int, str], list[int]] = {}
    for i, request in enumerate(requests):
        members.setdefault((request.group, request.tag), []).append(i)
    return list(members.values())


def spread(rows: Sequence[Sequence[int]], count: int, n: int) -> list[int]:
    """Numbers of `count` rows that lie far apart, the first row among them; ties go to the earlier row.

    i_1 = 0,  i_{m+1} = argmax_i min_{j in chosen} d(i, j),  d = Jaccard distance of the sets of n-grams
    """
    pieces = [frozenset(tuple(row[i : i + n]) for i in range(max(1, len(row) - n + 1))) for row in rows]
    chosen, nearest = [0], [distance(p, pieces[0]) for p in pieces]
    while len(chosen) < count:
        best = max((i for i in range(len(rows)) if i not in chosen), key=lambda i: (nearest[i], -i))
        chosen.append(best)
        nearest = [min(d, distance(p, pieces[best])) for d, p in zip(nearest, pieces, strict=True)]
    return chosen


def distance(a: frozenset[Any], b: frozenset[Any]) -> float:
    """1 - |a and b| / |a or b|."""
    return 1.0 - len(a & b) / len(a | b) if a | b else 0.0


@hookimpl
def rlhf_peft_register_samplers(register: Register) -> None:
    """Offer the sampler."""
    register("diverse", Diverse)
