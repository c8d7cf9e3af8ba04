"""The default sampler: decodes with dense merged weights and a cache that is written in place.

Each prompt is read once for its whole group, finished rows are dropped from the batch, and tokens are drawn by inverse
CDF from one uniform number a row and token, so that a completion depends on its own seed and not on its batch-mates.

Left out on purpose: truncation of the distribution (top-k, top-p, min-p), for log-probabilities would then have to be
renormalised on the sampled support; beams; several turns.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import Finish, Options, PolicyView, Request, Rollout, SamplerError, SamplingParams

if TYPE_CHECKING:
    from .kv_cache import GrowingCache

COMPACT_BELOW = 0.75
"""The batch is compacted when fewer than this share of its rows are still being written."""


class CachedOptions(Options):
    """How completions are drawn."""

    max_new_tokens: int = Field(256, gt=0, description="Most tokens of a completion, EOS included.")
    temperature: float = Field(1.0, ge=0, description="Logits are divided by it; RL needs more than 0.")
    stop: list[str] = Field(default_factory=list, description="Strings that end a completion.")
    max_rows: int = Field(256, gt=0, description="Most rows decoded at once.")


@dataclass(slots=True)
class _Row:
    """A row while it is written."""

    request: Request
    room: int
    uniforms: Tensor
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: Finish | None = None


def draw(logits: Tensor, uniforms: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverse CDF: the first token whose cumulative probability exceeds u.

    Args:
        logits: [B, V].
        uniforms: [B] in [0, 1).
        temperature: [B]; where 0, the most likely token is taken.

    Returns:
        tokens [B] int64, and their log-probabilities [B] float32 under the distribution that was drawn from.
    """
    greedy = temperature == 0
    scaled = logits.float() / torch.where(greedy, 1.0, temperature).unsqueeze(-1)
    logps = torch.log_softmax(scaled, dim=-1)
    cdf = logps.exp().cumsum(-1)
    tokens = torch.searchsorted(cdf, uniforms.to(cdf.dtype).unsqueeze(-1) * cdf[:, -1:], right=True).squeeze(
        -1
    )
    tokens = torch.where(greedy, logits.argmax(-1), tokens.clamp(max=logits.shape[-1] - 1))
    return tokens, logps.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


class CachedSampler:
    """Writes completions with the policy's own weights."""

    Options = CachedOptions
    provides = frozenset({"logps", "row_seeds"})

    def __init__(self, options: CachedOptions) -> None:
        self.options = options
        self.params = SamplingParams(options.max_new_tokens, options.temperature, tuple(options.stop))
        self._view: PolicyView | None = None
        self._version = 0

    def sync(self, policy: PolicyView, version: int) -> None:
        """Take the policy; its weights are read when sampling begins."""
        self._view, self._version = policy, version

    def close(self) -> None:
        """Let the policy go."""
        self._view = None

    def sample(self, requests: Sequence[Request]) -> Rollout:
        """One completion for each request.

        Raises:
            SamplerError: no policy was given yet, or a prompt leaves no room for a token.
        """
        if self._view is None:
            raise SamplerError("sampler cached: sample() before sync().")
        rows = [_start(request, self._view.max_length) for request in requests]
        # Longest prompts together: padding is computed for nothing.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].request.prompt_ids))
        with self._view.decoder() as model:
            for begin in range(0, len(order), self.options.max_rows):
                _decode(model, self._view, [rows[i] for i in order[begin : begin + self.options.max_rows]])
        return _rollout(rows, self._version)


def _start(request: Request, max_length: int) -> _Row:
    room = min(request.params.max_new_tokens, max_length - len(request.prompt_ids))
    if room <= 0:
        raise SamplerError(
            f"sampler cached: a prompt of {len(request.prompt_ids)} tokens leaves no room in a context of {max_length}."
        )
    generator = torch.Generator().manual_seed(request.seed)
    return _Row(request, room, torch.rand(room, generator=generator, dtype=torch.float64))


def _prefill(model: Any, view: PolicyView, rows: list[_Row]) -> tuple[Tensor, GrowingCache, Tensor]:
    """Read each distinct prompt once; returns last logits [B, V], the cache and the mask [B, P] of the whole batch."""
    from .kv_cache import GrowingCache  # transformers is slow to import

    index: dict[tuple[int, ...], int] = {}
    which = [index.setdefault(tuple(row.request.prompt_ids.tolist()), len(index)) for row in rows]
    width = max(len(prompt) for prompt in index)
    ids = torch.full((len(index), width), view.pad_id, dtype=torch.int64)
    mask = torch.zeros((len(index), width), dtype=torch.int64)
    for prompt, i in index.items():
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    ids, mask = ids.to(view.device), mask.to(view.device)
    layers = model.config.get_text_config().num_hidden_layers
    cache = GrowingCache(layers, width + max(row.room for row in rows))
    logits = _forward(model, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
    chosen = torch.tensor(which, device=view.device)
    if which != list(range(len(index))):
        cache.select(chosen)
    return logits[chosen], cache, mask[chosen]


def _forward(model: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: GrowingCache) -> Tensor:
    """Logits [B, V] after the last token."""
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in _parameters(type(model)) else {}
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **last_only,
    )
    logits: Tensor = out.logits[:, -1]
    return logits


_SIGNATURES: dict[type, frozenset[str]] = {}


def _parameters(model: type) -> frozenset[str]:
    if model not in _SIGNATURES:
        _SIGNATURES[model] = frozenset(inspect.signature(model.forward).parameters)  # type: ignore[attr-defined]
    return _SIGNATURES[model]


def _decode(model: Any, view: PolicyView, rows: list[_Row]) -> None:
    """Write all rows of one batch to their end."""
    logits, cache, mask = _prefill(model, view, rows)
    width = mask.shape[1]
    mask = torch.nn.functional.pad(mask, (0, max(row.room for row in rows)), value=1)
    lengths = mask[:, :width].sum(-1)
    temperature = torch.tensor([row.request.params.temperature for row in rows], device=view.device)
    alive = rows
    for t in range(max(row.room for row in rows)):
        uniforms = torch.stack([row.uniforms[min(t, row.room - 1)] for row in alive])
        tokens, logps = draw(logits, uniforms.to(view.device), temperature)
        for row, token, logp in zip(alive, tokens.tolist(), logps.tolist(), strict=True):
            _take(row, token, logp, view)
        going = [i for i, row in enumerate(alive) if row.finish is None]
        if not going:
            return
        if len(going) < COMPACT_BELOW * len(alive):
            keep = torch.tensor(going, device=view.device)
            cache.select(keep)
            alive = [alive[i] for i in going]
            tokens, mask, lengths, temperature = tokens[keep], mask[keep], lengths[keep], temperature[keep]
        positions = (lengths + t).unsqueeze(-1)
        logits = _forward(model, tokens.unsqueeze(-1), mask[:, : width + t + 1], positions, cache)


def _take(row: _Row, token: int, logp: float, view: PolicyView) -> None:
    """Append a drawn token to its row, and see whether the row ends; finished rows take no more."""
    if row.finish is not None:
        return
    row.tokens.append(token)
    row.logps.append(logp)
    if token in view.eos_ids:
        row.finish = "eos"
    elif row.request.params.stop and any(stop in view.decode(row.tokens) for stop in row.request.params.stop):
        row.finish = "stop"
    elif len(row.tokens) >= row.room:
        row.finish = "length"


def _rollout(rows: list[_Row], version: int) -> Rollout:
    names = list(dict.fromkeys(name for row in rows for name in row.request.columns))
    ids, masks, logps = [], [], []
    for row in rows:
        prompt = row.request.prompt_ids.cpu()
        ids.append(torch.cat([prompt, torch.tensor(row.tokens, dtype=torch.int64)]))
        masks.append(torch.arange(len(ids[-1])) >= len(prompt))
        logps.append(torch.cat([torch.zeros(len(prompt)), torch.tensor(row.logps, dtype=torch.float32)]))
    return Rollout(
        input_ids=ids,
        action_mask=masks,
        finish=[row.finish or "length" for row in rows],
        group=torch.tensor([row.request.group for row in rows], dtype=torch.int64),
        tag=[row.request.tag for row in rows],
        columns={name: [row.request.columns.get(name) for row in rows] for name in names},
        sampler_logps=logps,
        version=version,
    )
