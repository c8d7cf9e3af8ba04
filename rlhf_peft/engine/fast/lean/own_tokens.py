"""The keys and values of the rows' own tokens, in two kinds of buffers.

Growing ones are read as far as they are filled, which the host knows. Fixed ones are read as far as they reach, and a
mask on the device hides what is not filled yet: a step over them is the same operations on the same memory every time,
so that it can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kv_cache import GrowingLayer

MULTIPLE = 8
"""Fixed buffers have room for a multiple of so many tokens, which suits the products of a card."""
SPARED = 10**9
"""Bytes of a layer that must be spared for fixed buffers to be read in part at first: as many as a consumer card reads
in 2 ms, which is about the time in which a layer's part of a graph is captured."""


class GrowingTokens:
    """Buffers that are read as far as they are filled.

    Args:
        layers: of the model.
        room: most tokens that a row may be given.
    """

    def __init__(self, layers: int, room: int) -> None:
        self._layers = [GrowingLayer(room) for _ in range(layers)]

    def hidden(self) -> Tensor | None:
        """What is added to the scores of one step: nothing."""
        return None

    def update(self, number: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [B, K, 1, d] in a layer; all so far [B, K, t, d]."""
        return self._layers[number].update(keys, values)

    def advance(self) -> None:
        """A step has ended."""

    def select(self, rows: Tensor) -> None:
        """Go on with these rows."""
        for layer in self._layers:
            if layer.is_initialized:
                layer.select(rows)

    def put_before(self, read: Sequence[tuple[Tensor, Tensor]], which: Tensor) -> None:
        """Let each row have a copy of its prompt's keys and values before its own."""
        for layer, (keys, values) in zip(self._layers, read, strict=True):
            layer.put_before(keys[which], values[which])


class FixedTokens:
    """Buffers of fixed size, written where a tensor on the device says.

    All rows have the same number of tokens of their own. What the buffers are read for grows in few steps, see `widen`.
    As rows end the others move to the front.

    Args:
        layers: of the model.
        like: the first layer's keys of the prompts [G, K, P, d], for sizes, dtype and device.
        rows: B.
        room: most tokens that a row may be given.

    Attributes:
        count: [1] int64 on the device, the tokens that each row has.
        dtype: of keys and values.
        reach: how many places are read, R; more than `count`.
    """

    def __init__(self, layers: int, like: Tensor, rows: int, room: int) -> None:
        room = -(-room // MULTIPLE) * MULTIPLE
        shape = (rows, like.shape[1], room, like.shape[3])
        # Zeros, because what is hidden is multiplied by 0, and so must be finite.
        self._layers = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(layers)]
        self._rows, self.dtype = rows, like.dtype
        self._places = torch.arange(room, device=like.device)
        self._shown = torch.zeros(room, device=like.device)
        self._reaches = _halves(room, 2 * self._layers[0][0][:, :, 0].nbytes)
        self.reach = self._reaches.pop()
        self.count = torch.zeros(1, dtype=torch.int64, device=like.device)

    def widen(self) -> None:
        """Read more places from now on, about twice as many."""
        self.reach = self._reaches.pop()

    def hidden(self) -> Tensor:
        """[R] float32, what is added to the scores of one step: -inf where nothing is written yet."""
        late = self._places[: self.reach] > self.count
        return self._shown[: self.reach].masked_fill(late, -torch.inf)

    def update(self, number: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, K, 1, d] in a layer; all that is read [B, K, R, d]."""
        mine, theirs = (buffer[: self._rows] for buffer in self._layers[number])
        mine.index_copy_(2, self.count, keys)
        theirs.index_copy_(2, self.count, values)
        return mine[:, :, : self.reach], theirs[:, :, : self.reach]

    def advance(self) -> None:
        """A step has ended: the next one writes a place further."""
        self.count += 1

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, which move to the front."""
        for both in self._layers:
            for buffer in both:
                kept = buffer[:, :, : self.reach].index_select(0, rows)
                buffer[: len(rows), :, : self.reach] = kept
        self._rows = len(rows)


def _halves(room: int, place: int) -> list[int]:
    """How far buffers are read, one after the other, the last one first: half as far while that spares enough.

    Args:
        room: tokens.
        place: bytes that one token of all rows takes in a layer.
    """
    out = [room]
    while True:
        half = -(-out[-1] // (2 * MULTIPLE)) * MULTIPLE
        if half == out[-1] or half * (out[-1] - half) * place < SPARED:
            return out
        out.append(half)
