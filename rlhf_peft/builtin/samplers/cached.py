"""The default sampler: decodes with dense merged weights and a cache that is written in place.

Each prompt is read once for its whole group, finished rows are dropped from the batch, and tokens are drawn by inverse
CDF from one uniform number a row and token, so that a completion depends on its own seed and not on its batch-mates.

Left out on purpose: models that keep a state instead of keys and values (`hf` writes with those); beams; several turns.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import PolicyView, SamplerError

from .draw import Knobs, draw
from .local import LocalSampler
from .options import SamplingOptions
from .rows import Row, by_length, pad_left, streams

if TYPE_CHECKING:
    from .kv_cache import GrowingCache

COMPACT_BELOW = 0.75
"""The batch is compacted when fewer than this share of its rows are still being written."""


class CachedOptions(SamplingOptions):
    """How completions are drawn, and how many at once."""

    max_rows: int = Field(256, gt=0, description="Most rows decoded at once.")


class CachedSampler(LocalSampler):
    """Writes completions with the policy's own weights."""

    Options = CachedOptions
    name = "cached"

    def __init__(self, options: CachedOptions) -> None:
        super().__init__(options)
        self.options = options

    def write(self, model: Any, view: PolicyView, rows: list[Row]) -> None:
        """Write all rows to their end, batch by batch."""
        if getattr(model, "_is_stateful", False):
            raise SamplerError(
                f"sampler cached: {type(model).__name__} keeps a state, not only keys and values. Use sampler.name=hf."
            )
        for batch in by_length(rows, self.options.max_rows):
            _decode(model, view, batch)


def _prefill(model: Any, view: PolicyView, rows: list[Row]) -> tuple[Tensor, GrowingCache, Tensor]:
    """Read each distinct prompt once; returns last logits [B, V], the cache and the mask [B, P] of the whole batch."""
    from .kv_cache import GrowingCache  # transformers is slow to import

    index: dict[tuple[int, ...], int] = {}
    which = [index.setdefault(tuple(row.request.prompt_ids.tolist()), len(index)) for row in rows]
    ids, mask = (tensor.to(view.device) for tensor in pad_left(list(index), view.pad_id))
    layers = model.config.get_text_config().num_hidden_layers
    cache = GrowingCache(layers, ids.shape[1] + max(row.room for row in rows))
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


def _decode(model: Any, view: PolicyView, rows: list[Row]) -> None:
    """Write all rows of one batch to their end."""
    logits, cache, mask = _prefill(model, view, rows)
    width = mask.shape[1]
    mask = torch.nn.functional.pad(mask, (0, max(row.room for row in rows)), value=1)
    lengths = mask[:, :width].sum(-1)
    alive = rows
    numbers, knobs = streams(rows, view.device), Knobs.of([row.request.params for row in rows], view.device)
    for t in range(len(numbers)):
        tokens, logps = draw(logits, numbers[t], knobs)
        for row, token, logp in zip(alive, tokens.tolist(), logps.tolist(), strict=True):
            row.take(token, logp, view)
        going = [i for i, row in enumerate(alive) if row.finish is None]
        if not going:
            return
        if len(going) < COMPACT_BELOW * len(alive):
            keep = torch.tensor(going, device=view.device)
            cache.select(keep)
            alive = [alive[i] for i in going]
            tokens, mask, lengths, numbers = tokens[keep], mask[keep], lengths[keep], numbers[:, keep]
            knobs = Knobs.of([row.request.params for row in alive], view.device)
        # Ended rows go on for a while, but not past the model's last position.
        positions = (lengths + t).clamp(max=view.max_length - 1).unsqueeze(-1)
        logits = _forward(model, tokens.unsqueeze(-1), mask[:, : width + t + 1], positions, cache)
