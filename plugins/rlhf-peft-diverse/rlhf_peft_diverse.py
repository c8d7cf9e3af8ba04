"""`diverse`: draws more completions than were asked for and keeps those of a prompt that differ most.

For each prompt with k requests, `candidates` * k completions are drawn from the policy. The first is kept; then, again
and again, the one whose nearest kept neighbour is farthest. The distance of two completions is the Jaccard distance of
their sets of n-grams. What is kept is no draw from the policy any more (the log-probabilities are the policy's all the
same), so it is for methods that compare or imitate completions: online DPO, rejection sampling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from rlhf_peft.plugin import (
    LocalOptions,
    LocalSampler,
    Register,
    Request,
    Rollout,
    SampleContext,
    hookimpl,
)

HOOK_API = 1
_STRIDE = 1_000_003
"""Candidates of one request have seeds so far apart."""


class DiverseOptions(LocalOptions):
    """How completions are drawn, and how many of them are kept."""

    temperature: float = Field(1.0, gt=0, description="Logits are divided by it.")
    candidates: int = Field(4, gt=0, description="Completions drawn for each one that is kept.")
    ngram: int = Field(2, gt=0, description="Tokens in the pieces that completions are compared by.")
    max_rows: int = Field(128, gt=0, description="Most rows decoded at once.")


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
        drawn = super().sample(
            [
                dataclasses.replace(request, seed=request.seed + k * _STRIDE)
                for request in requests
                for k in range(self.candidates)
            ]
        )
        return drawn.rows(self._kept(requests, drawn))

    def _kept(self, requests: Sequence[Request], drawn: Rollout) -> list[int]:
        """For each request the number of one of its prompt's candidates."""
        places: dict[tuple[int, str], list[int]] = {}
        for i, request in enumerate(requests):
            places.setdefault((request.group, request.tag), []).append(i)
        kept: dict[int, int] = {}
        for members in places.values():
            pool = [i * self.candidates + k for i in members for k in range(self.candidates)]
            chosen = spread([drawn.completion_ids(row) for row in pool], len(members), self.ngram)
            kept.update(zip(members, (pool[i] for i in chosen), strict=True))
        return [kept[i] for i in range(len(requests))]


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
