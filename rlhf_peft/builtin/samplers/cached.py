"""The default sampler: decodes with dense merged weights and a cache that is written in place.

Each prompt is read once for its whole group and, where the model allows it (`lean`), held once; finished rows are
dropped from the batch, and tokens are drawn by inverse CDF from one uniform number a row and token, so that a
completion depends on its own seed and not on its batch-mates.

Models that keep something else than keys and values (Mamba's kind, convolutions, caches that layers share) are left to
`hf`: whether the cache gives a model's own logits is tried on two short prompts before anything is written.

Left out on purpose: beams; several turns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import PolicyView, arguments_of, cache_keyword, keeps_state, quick_size

from .draw import Knobs, draw
from .hf import HfOptions, HfSampler
from .local import LocalSampler
from .options import SamplingOptions
from .rows import Row, by_length, pad_left, streams

if TYPE_CHECKING:
    from .kv_cache import GrowingCache
    from .lean import LeanDecoder

log = logging.getLogger("rlhf_peft")

COMPACT_BELOW = 0.75
"""The batch is compacted when fewer than this share of its rows are still being written, or where fewer are quicker."""


class CachedOptions(SamplingOptions):
    """How completions are drawn, and how many at once."""

    max_rows: int = Field(256, gt=0, le=2**20, description="Most rows decoded at once.")


class CachedSampler(LocalSampler):
    """Writes completions with the policy's own weights."""

    Options = CachedOptions
    name = "cached"

    def __init__(self, options: CachedOptions) -> None:
        super().__init__(options)
        self.options = options
        self._decoder = Decoder()
        self._able: bool | None = None

    def write(self, model: Any, view: PolicyView, rows: list[Row]) -> None:
        """Write all rows to their end, batch by batch; by `hf` where the model's cache is of another kind."""
        if self._able is None:
            self._able = self._decoder.can(model, view)
            if not self._able:
                log.warning(
                    "sampler cached: %s keeps more than keys and values, so the sampler hf writes in its place.",
                    type(model).__name__,
                )
        if not self._able:
            most = min(self.options.max_rows, HfOptions().max_rows)
            HfSampler(HfOptions(max_rows=most)).write(model, view, rows)
            return
        for batch in by_length(rows, self.options.max_rows):
            self._decoder.write(model, view, batch)


class _Usual:
    """transformers' own forward, for every model: each row has its prompt's keys and values.

    Args:
        model: writes.
        read: the cache after the prompts were read, [G, K, P, d] a layer.
        mask: [G, P].
        which: [B] each row's prompt.
        room: most tokens that a row may be given.
    """

    def __init__(self, model: Any, read: GrowingCache, mask: Tensor, which: Tensor, room: int) -> None:
        self._model, self._cache = model, read
        self._width, self._written = mask.shape[1], 0
        read.select(which, room)
        padded = not bool(mask.all())
        self._mask = torch.nn.functional.pad(mask[which], (0, room), value=1) if padded else None

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows."""
        self._cache.select(rows)
        self._mask = None if self._mask is None else self._mask[rows]

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [B, V] after one more token a row."""
        self._written += 1
        seen = None if self._mask is None else self._mask[:, : self._width + self._written]
        return _forward(self._model, tokens.unsqueeze(-1), seen, positions, self._cache)


@dataclass(slots=True)
class _Read:
    """Distinct prompts, read once.

    Attributes:
        logits: [G, V] after each.
        cache: [G, K, P, d] a layer.
        mask: [G, P].
        which: [B] each row's prompt.
    """

    logits: Tensor
    cache: GrowingCache
    mask: Tensor
    which: Tensor


def _prefill(model: Any, view: PolicyView, prompts: Iterable[Sequence[int]]) -> _Read:
    from .kv_cache import GrowingCache  # transformers is slow to import

    index: dict[tuple[int, ...], int] = {}
    which = [index.setdefault(tuple(prompt), len(index)) for prompt in prompts]
    ids, mask = (tensor.to(view.device) for tensor in pad_left(list(index), view.pad_id))
    cache = GrowingCache(model.config.get_text_config().num_hidden_layers, ids.shape[1])
    logits = _forward(model, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
    return _Read(logits, cache, mask, torch.tensor(which, device=view.device))


def _forward(model: Any, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: GrowingCache) -> Tensor:
    """Logits [B, V] after the last token; no mask where nothing is padded."""
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in arguments_of(model.forward) else {}
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        **{cache_keyword(model): cache},
        **last_only,
    )
    logits: Tensor = out.logits[:, -1]
    return logits


class Decoder:
    """Decodes batches of rows, the lean way where a model allows it.

    Attributes:
        lean: whether the lean step gave the usual one's logits, once it was tried on a model.
    """

    def __init__(self) -> None:
        self.lean: bool | None = None

    def can(self, model: Any, view: PolicyView) -> bool:
        """Whether the model can be decoded with a cache of keys and values; tried where its shape does not tell."""
        from .lean import LeanDecoder

        return not keeps_state(model) and (LeanDecoder.supports(model) or _gives_its_logits(model, view))

    def write(self, model: Any, view: PolicyView, rows: list[Row]) -> None:
        """Write all rows of one batch to their end."""
        read = _prefill(model, view, [row.request.prompt_ids.tolist() for row in rows])
        room = max(row.room for row in rows)
        lengths = read.mask.sum(-1)[read.which]
        logits, way = read.logits[read.which], self._way(model, view, read, room)
        alive = rows
        numbers, knobs = (
            streams(rows, view.device),
            Knobs.of([row.request.params for row in rows], view.device),
        )
        for t in range(len(numbers)):
            tokens, logps = draw(logits, numbers[t], knobs)
            for row, token, logp in zip(alive, tokens.tolist(), logps.tolist(), strict=True):
                row.take(token, logp, view)
            going = [i for i, row in enumerate(alive) if row.finish is None]
            if not going:
                return
            if _fewer(len(going), len(alive), view.device):
                keep = torch.tensor(going, device=view.device)
                way.keep(keep)
                alive = [alive[i] for i in going]
                tokens, lengths, numbers = tokens[keep], lengths[keep], numbers[:, keep]
                knobs = Knobs.of([row.request.params for row in alive], view.device)
            # Ended rows go on for a while, but not past the model's last position.
            positions = (lengths + t).clamp(max=view.max_length - 1).unsqueeze(-1)
            logits = way.step(tokens, positions)

    def _way(self, model: Any, view: PolicyView, read: _Read, room: int) -> _Usual | LeanDecoder:
        from .lean import LeanDecoder

        given = (read.cache, read.mask, read.which, room)
        if self.lean is not False and LeanDecoder.supports(model):
            if self.lean is None:
                self.lean = _same(model, view, read)
            if self.lean:
                return LeanDecoder(model, *given)
        return _Usual(model, *given)


def _fewer(going: int, rows: int, device: torch.device) -> bool:
    """Whether it pays to go on with those rows only that are still being written."""
    quicker = device.type == "cpu" and quick_size(going, device) < quick_size(rows, device)
    return quicker or going < COMPACT_BELOW * rows


def _gives_its_logits(model: Any, view: PolicyView) -> bool:
    """Whether a step after two prompts of unequal length gives the logits of the whole rows."""
    rows = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14]]
    try:
        read = _prefill(model, view, [row[:-1] for row in rows])
        tokens = torch.tensor([row[-1] for row in rows], device=view.device)
        step = _Usual(model, read.cache, read.mask, read.which, 1).step
        ours = [read.logits, step(tokens, read.mask.sum(-1, keepdim=True))]
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError, LookupError, NotImplementedError):
        return False  # the model has another idea of a cache
    whole = [
        model(input_ids=torch.tensor([row], device=view.device), use_cache=False).logits[0] for row in rows
    ]
    theirs = [torch.stack([logits[at] for logits in whole]).float() for at in (-2, -1)]
    near = 1e-3 if read.logits.dtype == torch.float32 else 1e-1
    pairs = zip(ours, theirs, strict=True)
    return all(torch.allclose(a.float(), b, atol=near * float(b.abs().max())) for a, b in pairs)


def _same(model: Any, view: PolicyView, read: _Read) -> bool:
    """Whether one step after the first prompts gives the same logits both ways, for several rows each."""
    from .lean import FEW, LeanDecoder

    few = read.mask[:2]
    which = torch.arange(len(few), device=few.device).repeat_interleave(1 + FEW)
    tokens = torch.arange(len(which), device=few.device) % read.logits.shape[-1]
    positions = few.sum(-1)[which].unsqueeze(-1).clamp(max=view.max_length - 1)
    ours = LeanDecoder(model, read.cache.first(len(few)), few, which, 1).step(tokens, positions).float()
    usual = _Usual(model, read.cache.first(len(few)), few, which, 1).step(tokens, positions).float()
    near = 1e-4 if read.logits.dtype == torch.float32 else 2e-2
    return torch.allclose(ours, usual, atol=near * float(usual.abs().max()))
