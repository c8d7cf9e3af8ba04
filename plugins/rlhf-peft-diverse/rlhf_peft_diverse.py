"""`diverse`: draws more completions than were asked for and keeps those of a prompt that differ most.

For each prompt with k requests, `candidates` * k completions are drawn from the policy. The first is kept; then, again
and again, the one whose nearest kept neighbour is farthest. The distance of two completions is the Jaccard distance of
their sets of n-grams. What is kept is no draw from the policy any more (the log-probabilities are the policy's all the
same), so it is for methods that compare or imitate completions: online DPO, rejection sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import (
    Finish,
    Options,
    PolicyView,
    Register,
    Request,
    Rollout,
    SampleContext,
    SamplerError,
    SamplingParams,
    cache_keyword,
    hookimpl,
)

HOOK_API = 1
_STRIDE = 1_000_003
"""Candidates of one request have seeds so far apart."""


class DiverseOptions(Options):
    """How completions are drawn, and how many of them are kept."""

    max_new_tokens: int = Field(256, gt=0, description="Most tokens of a completion, EOS included.")
    temperature: float = Field(1.0, gt=0, description="Logits are divided by it.")
    candidates: int = Field(4, gt=0, description="Completions drawn for each one that is kept.")
    ngram: int = Field(2, gt=0, description="Tokens in the pieces that completions are compared by.")
    max_rows: int = Field(128, gt=0, description="Most rows decoded at once.")


@dataclass
class _Row:
    """A candidate while it is written."""

    request: Request
    seed: int
    room: int
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: Finish | None = None


class Diverse:
    """Samples, compares, keeps."""

    Options = DiverseOptions
    provides = frozenset({"logps"})

    def __init__(self, options: DiverseOptions) -> None:
        self.options = options
        self.params = SamplingParams(options.max_new_tokens, options.temperature)
        self._policy: PolicyView | None = None
        self._version = 0

    def sync(self, policy: PolicyView, version: int) -> None:
        """Take the policy; its weights are read when sampling begins."""
        self._policy, self._version = policy, version

    def close(self) -> None:
        """Let the policy go."""
        self._policy = None

    def sample(self, requests: Sequence[Request], context: SampleContext | None = None) -> Rollout:
        """One completion for each request.

        Raises:
            SamplerError: no policy was given yet, or a prompt leaves no room for a token.
        """
        if self._policy is None:
            raise SamplerError("sampler diverse: sample() before sync().")
        count = self.options.candidates
        rows = [
            _start(r, r.seed + k * _STRIDE, self._policy.max_length) for r in requests for k in range(count)
        ]
        with self._policy.decoder() as model:
            for begin in range(0, len(rows), self.options.max_rows):
                _decode(model, self._policy, rows[begin : begin + self.options.max_rows])
        return _rollout(self._kept(requests, rows), self._version)

    def _kept(self, requests: Sequence[Request], rows: list[_Row]) -> list[_Row]:
        """For each request one of its prompt's candidates."""
        kept: dict[int, _Row] = {}
        places: dict[tuple[int, str], list[int]] = {}
        for i, request in enumerate(requests):
            places.setdefault((request.group, request.tag), []).append(i)
        count = self.options.candidates
        for members in places.values():
            pool = [row for i in members for row in rows[i * count : (i + 1) * count]]
            chosen = spread([row.tokens for row in pool], len(members), self.options.ngram)
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


def _start(request: Request, seed: int, max_length: int) -> _Row:
    room = min(request.params.max_new_tokens, max_length - len(request.prompt_ids))
    if room <= 0:
        raise SamplerError(
            f"sampler diverse: a prompt of {len(request.prompt_ids)} tokens leaves no room in {max_length}."
        )
    return _Row(request, seed, room)


def _decode(model: Any, policy: PolicyView, rows: list[_Row]) -> None:
    """Write all rows to their end, in one batch padded on the left."""
    from transformers import DynamicCache  # slow to import, and plugins are imported at every start

    width = max(len(row.request.prompt_ids) for row in rows)
    ids = torch.full((len(rows), width), policy.pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row.request.prompt_ids) :] = row.request.prompt_ids
        mask[i, width - len(row.request.prompt_ids) :] = 1
    generators = [torch.Generator().manual_seed(row.seed) for row in rows]
    positions, cache = (mask.cumsum(-1) - 1).clamp(min=0), DynamicCache(config=model.config)
    while any(row.finish is None for row in rows):
        logits = _forward(model, policy, ids, mask, positions, cache)
        tokens = [_take(row, logits[i], generators[i], policy) for i, row in enumerate(rows)]
        ids = torch.tensor(tokens).unsqueeze(-1)
        mask = torch.cat([mask, torch.ones((len(rows), 1), dtype=torch.int64)], -1)
        positions = positions[:, -1:] + 1


def _forward(
    model: Any, policy: PolicyView, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any
) -> Tensor:
    """Logits [B, V] after the last token; the tokens' keys and values are added to the cache."""
    there = [t.to(policy.device) for t in (ids, mask, positions)]
    out = model(
        input_ids=there[0],
        attention_mask=there[1],
        position_ids=there[2],
        use_cache=True,
        **{cache_keyword(model): cache},
    )
    logits: Tensor = out.logits[:, -1].float().cpu()
    return logits


def _take(row: _Row, logits: Tensor, generator: torch.Generator, policy: PolicyView) -> int:
    """Draw the row's next token by inverse CDF; a row that has ended gets padding."""
    if row.finish is not None:
        return policy.pad_id
    params = row.request.params
    logps = torch.log_softmax(logits / (params.temperature or 1.0), -1)
    u = torch.rand(1, generator=generator)
    drawn = int(torch.searchsorted(logps.exp().cumsum(-1), u, right=True).clamp(max=len(logits) - 1))
    token = drawn if params.temperature else int(logits.argmax())
    row.tokens.append(token)
    row.logps.append(float(logps[token]))
    if token in policy.eos_ids:
        row.finish = "eos"
    elif params.stop and any(stop in policy.decode(row.tokens) for stop in params.stop):
        row.finish = "stop"
    elif len(row.tokens) >= row.room:
        row.finish = "length"
    return token


def _rollout(rows: list[_Row], version: int) -> Rollout:
    names = list(dict.fromkeys(name for row in rows for name in row.request.columns))
    prompts = [len(row.request.prompt_ids) for row in rows]
    ids = [torch.cat([row.request.prompt_ids.cpu(), torch.tensor(row.tokens)]) for row in rows]
    return Rollout(
        input_ids=ids,
        action_mask=[torch.arange(len(i)) >= p for i, p in zip(ids, prompts, strict=True)],
        finish=[row.finish or "length" for row in rows],
        group=torch.tensor([row.request.group for row in rows], dtype=torch.int64),
        tag=[row.request.tag for row in rows],
        columns={name: [row.request.columns.get(name) for row in rows] for name in names},
        sampler_logps=[
            torch.cat([torch.zeros(p), torch.tensor(row.logps)]) for p, row in zip(prompts, rows, strict=True)
        ],
        version=version,
    )


@hookimpl
def rlhf_peft_register_samplers(register: Register) -> None:
    """Offer the sampler."""
    register("diverse", Diverse)
