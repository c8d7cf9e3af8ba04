"""Decoding token by token: prompts are read once, and every row then takes one token a step.

The plain way is transformers' own forward with a cache that is written in place. Letters: G distinct prompts, B rows,
P tokens of the longest prompt, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..kit.sampling.rows import pad_left
from ..kit.upload import upload
from .compat import arguments_of, cache_keyword, keeps_state
from .compat.lora import LoraLayer, lone_adapter, matrices
from .decoding_loop import Capturing, DecodingLoop
from .fast import FastPaths
from .fast.cuda_graphs import CudaGraphs
from .fast.dense_weights import fits, merged
from .fast.lean import FEW, LeanDecoder, needs_no_host
from .fast.paths import CANNOT, logps_differ
from .fast.small_products import quick_size
from .kv_cache import GrowingCache

if TYPE_CHECKING:
    from .base import SharedBase

COMPACT_BELOW = 0.75
"""Rows that have ended are dropped when fewer than this share of the rows go on, or where fewer rows are quicker."""


class Stepper(Protocol):
    """One way to compute a step."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [B'], numbered among the present ones."""
        ...

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [B, V] after one more token a row: tokens [B], positions [B, 1]."""
        ...


@dataclass(slots=True)
class ReadPrompts:
    """Distinct prompts that the model has read.

    Attributes:
        logits: [G, V] after each prompt.
        cache: keys and values [G, heads, P, d] of every layer.
        mask: [G, P], 1 where a token is real; prompts are padded on the left.
        which: [B] the prompt of each row.
    """

    logits: Tensor
    cache: GrowingCache
    mask: Tensor
    which: Tensor


class PlainStepper:
    """transformers' own forward; each row has its own copy of its prompt's keys and values.

    Args:
        model: a causal language model.
        read: the cache after the prompts were read.
        mask: [G, P].
        which: [B] the prompt of each row.
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
        return last_logits(self._model, tokens.unsqueeze(-1), seen, positions, self._cache)


class RowDecoder:
    """Rows that are being decoded; see `hookspecs.TokenDecoder`.

    Args:
        stepper: computes the steps.
        logits: [B, V] after the prompts.
        lengths: [B] tokens of each row's prompt.
        max_length: the model's last position, plus one.
        capturing: how a lean stepper's steps are captured; None: they are not.
    """

    def __init__(
        self,
        stepper: Stepper,
        logits: Tensor,
        lengths: Tensor,
        max_length: int,
        capturing: Capturing | None = None,
    ) -> None:
        self.logits = logits
        self._stepper, self._lengths, self._last = stepper, lengths, max_length - 1
        self._capturing = capturing
        self._taken: int | Tensor = 0

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token [B] of each row."""
        # Rows that have ended go on for a while, but not past the model's last position.
        positions = (self._lengths + self._taken).clamp(max=self._last).unsqueeze(-1)
        if isinstance(self._taken, int):  # Else the stepper counts.
            self._taken += 1
        self.logits = self._stepper.step(tokens, positions)
        return self.logits

    @property
    def loops(self) -> bool:
        """Whether steps and draws can be captured together."""
        return self._capturing is not None

    def loop(self, draw: Callable[[Tensor, Tensor], Tensor]) -> DecodingLoop:
        """Steps and draws as captured functions; it is asked for before any step.

        Args:
            draw: tokens [B] for logits [B, V] and their number [1]; it keeps them where they can be read.
        """
        assert self._capturing is not None and isinstance(self._stepper, LeanDecoder)
        own = self._stepper.fix()
        self._taken = own.count
        return DecodingLoop(self, own, draw, self._stepper.room, self._capturing)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [B'], numbered among the present ones."""
        self._stepper.keep(rows)
        self._lengths = self._lengths[rows]

    def should_compact(self, going: int, rows: int) -> bool:
        """Whether it pays to go on with `going` of `rows` rows alone, which costs a copy of their cache."""
        device = self._lengths.device
        quicker = device.type == "cpu" and quick_size(going, device) < quick_size(rows, device)
        return quicker or going < COMPACT_BELOW * rows


class Decoding:
    """Puts the base into the state in which its roles decode.

    Args:
        base: whose roles decode.
        fast: which fast paths are allowed.
        merge: decode with dense merged weights; None: if they fit in memory.
    """

    def __init__(self, base: SharedBase, fast: FastPaths, merge: bool | None = None) -> None:
        self._base, self._fast, self._merge = base, fast, merge
        loaded = base.loaded
        self._model = DecodingModel(loaded.lm, int(loaded.tokenizer.pad_token_id), base.max_length, fast)

    @contextmanager
    def as_role(self, role: str, merge: bool | None = None) -> Iterator[DecodingModel]:
        """The causal LM in eval mode as this role, without gradients, for decoding.

        Args:
            role: whose adapter. With merged weights, no role of another adapter can be entered inside.
            merge: dense merged weights; None: as the recipe's `model.merge_rollouts` says, and if that is null, where
                they fit in memory, but not on a card for models that the lean step knows.
        """
        base, loaded = self._base, self._base.loaded
        adapter = base.roles.adapter_of(role)
        merge = self._merge if merge is None else merge
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(base.role(role, train=False))
            if self._merging_pays() if merge is None else merge:
                stack.enter_context(merged(loaded.lm, adapter, loaded.dtype, loaded.quantizer))
                stack.enter_context(base.roles.active.pinned(adapter))
            yield self._model

    def _merging_pays(self) -> bool:
        """Whether dense merged weights are allowed, fit, and are needed.

        On a card the lean step decodes from the weights as they are held, with the adapter beside them: no step begins
        with a merge, and the adapter is exact.
        """
        loaded = self._base.loaded
        lean = self._fast.allows("lean_decoder") and LeanDecoder.supports(loaded.lm, dense=False)
        if not self._fast.allows("dense_weights") or (loaded.device.type == "cuda" and lean):
            return False
        return fits(loaded.lm, loaded.dtype, loaded.device, loaded.quantizer)


class DecodingModel:
    """A model that decodes, by the lean way where its architecture allows it; see `hookspecs.DecodingModel`.

    Args:
        lm: a causal language model of transformers.
        pad_id: what padding holds.
        max_length: longest row in tokens.
        fast: which fast paths are allowed.
    """

    def __init__(self, lm: Any, pad_id: int, max_length: int, fast: FastPaths | None = None) -> None:
        self.lm, self.pad_id, self.max_length = lm, pad_id, max_length
        self._fast = fast or FastPaths()
        self._can_start: bool | None = None

    @property
    def device(self) -> torch.device:
        """Of the model."""
        device: torch.device = self.lm.device
        return device

    @property
    def can_start(self) -> bool:
        """Whether the model decodes with a cache of keys and values; tried where its architecture does not tell."""
        if self._can_start is None:
            self._can_start = not keeps_state(self.lm) and (
                self._has_lean_shape() or self._gives_its_logits()
            )
        return self._can_start

    def _has_lean_shape(self) -> bool:
        """Whether the lean step knows the model; on a CPU its weights must be dense."""
        return LeanDecoder.supports(self.lm, dense=self.device.type == "cpu")

    def start(self, prompts: Sequence[Sequence[int]], room: int) -> RowDecoder:
        """Read the prompts, and be ready to take tokens.

        Args:
            prompts: B rows of token ids; equal ones are read once.
            room: most tokens that a row may be given.
        """
        read = self._read(prompts)
        given = (self.lm, read.cache, read.mask, read.which, room)
        # Both take over the cache, so that nothing else may use it from here on.
        stepper = LeanDecoder(*given) if self._lean(read) else PlainStepper(*given)
        lengths = read.mask.sum(-1)[read.which]
        return RowDecoder(stepper, read.logits[read.which], lengths, self.max_length, self._captures(stepper))

    def _captures(self, stepper: Stepper) -> Capturing | None:
        """How steps are captured: on a card, by the lean step."""
        on_card = isinstance(stepper, LeanDecoder) and self.device.type == "cuda"
        if not on_card or not self._fast.allows("cuda_graphs") or not needs_no_host(self.lm):
            return None
        return Capturing(CudaGraphs(self.device), self._fast, self._weights())

    def _read(self, prompts: Sequence[Sequence[int]]) -> ReadPrompts:
        index: dict[tuple[int, ...], int] = {}
        which = [index.setdefault(tuple(prompt), len(index)) for prompt in prompts]
        ids, mask = (upload(tensor, self.device) for tensor in pad_left(list(index), self.pad_id))
        cache = GrowingCache(self.lm.config.get_text_config().num_hidden_layers, ids.shape[1])
        logits = last_logits(self.lm, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        return ReadPrompts(logits, cache, mask, upload(torch.tensor(which), self.device))

    def _lean(self, read: ReadPrompts) -> bool:
        """Whether the lean step may be used: the first time, one step of several rows is computed both ways."""
        if not self._fast.allows("lean_decoder") or not self._has_lean_shape():
            return False
        few = read.mask[:2]
        # On a CPU few rows have copies of their prompt, which is another way.
        rows = 1 + FEW if few.device.type == "cpu" else 2
        which = torch.arange(len(few), device=few.device).repeat_interleave(rows)
        tokens = torch.arange(len(which), device=few.device) % read.logits.shape[-1]
        positions = few.sum(-1)[which].unsqueeze(-1).clamp(max=self.max_length - 1)

        def step(way: type[LeanDecoder] | type[PlainStepper]) -> Tensor:
            return way(self.lm, read.cache.first(len(few)), few, which, 1).step(tokens, positions)

        return self._fast.verified_once(
            "lean_decoder",
            lambda: step(LeanDecoder),
            lambda: step(PlainStepper),
            of=self._weights(),
            logits=True,
        )

    def _weights(self) -> str:
        """What the lean step multiplies with, in words: each is compared with the plain way once.

        An adapter that does nothing yet cannot show whether it is computed rightly.
        """
        if self._has_dense_shape():
            return "dense weights"
        layers = [module for module in self.lm.modules() if isinstance(module, LoraLayer)]
        each = [lora for layer in layers[:1] if (lora := matrices(layer, lone_adapter(layer))) is not None]
        works = any(bool(lora.up.any()) for lora in each)
        return "weights beside an adapter" if works else "weights alone"

    def _has_dense_shape(self) -> bool:
        return LeanDecoder.supports(self.lm, dense=True)

    def _gives_its_logits(self) -> bool:
        """Whether a step after two prompts of unequal length gives the logits of the whole rows."""
        rows = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14]]
        try:
            read = self._read([row[:-1] for row in rows])
            tokens = torch.tensor([row[-1] for row in rows], device=self.device)
            step = PlainStepper(self.lm, read.cache, read.mask, read.which, 1).step
            ours = [read.logits, step(tokens, read.mask.sum(-1, keepdim=True))]
        except torch.OutOfMemoryError:
            raise
        except CANNOT:
            return False  # The model has another idea of a cache.
        whole = [
            self.lm(input_ids=torch.tensor([row], device=self.device), use_cache=False).logits[0]
            for row in rows
        ]
        expected = [torch.stack([logits[at] for logits in whole]).float() for at in (-2, -1)]
        pairs = zip(ours, expected, strict=True)
        if read.logits.dtype == torch.float32 and self.lm.dtype == torch.float32:
            return all(torch.allclose(a.float(), b, atol=1e-3 * float(b.abs().max())) for a, b in pairs)
        return all(logps_differ(a, b) is None for a, b in pairs)


def last_logits(
    model: Any, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: GrowingCache
) -> Tensor:
    """Logits [B, V] after the last token of ids [B, t]; no mask where nothing is padded."""
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
