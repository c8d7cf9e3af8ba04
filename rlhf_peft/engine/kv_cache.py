"""A key-value cache that is written in place and read as a growing view.

transformers' dynamic cache copies itself at every token; its static one attends over its whole length at every token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .compat.cache import Cache, CacheLayer


class GrowingLayer(CacheLayer):
    """One layer's keys and values [B, heads, T, d] in buffers with room for `capacity` tokens."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers, in the shape and type of the first states."""
        batch, heads, _, size = key_states.shape
        self.keys = key_states.new_empty(batch, heads, self.capacity, size)
        self.values = value_states.new_empty(
            batch, value_states.shape[1], self.capacity, value_states.shape[-1]
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append, and return all so far as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows: Tensor, room: int = 0) -> None:
        """Keep these rows, in this order; a row may be repeated. Only what is filled is copied.

        Args:
            rows: [B] int64.
            room: tokens that there is to be room for beyond the capacity so far.
        """
        self.capacity += room
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), old.shape[1], self.capacity, old.shape[-1])
            torch.index_select(old[:, :, : self.length], 0, rows, out=new[:, :, : self.length])
            setattr(self, name, new)

    def put_before(self, keys: Tensor, values: Tensor) -> None:
        """Let these [B, heads, P, d] come before what is held, and leave as much room after it as there was."""
        filled = self.length
        self.capacity += keys.shape[-2]
        for name, first in (("keys", keys), ("values", values)):
            old = getattr(self, name)[:, :, :filled] if self.is_initialized else first[:, :, :0]
            new = first.new_empty(*first.shape[:2], self.capacity, first.shape[-1])
            torch.cat((first, old), dim=-2, out=new[:, :, : first.shape[-2] + filled])
            setattr(self, name, new)
        self.length, self.is_initialized = filled + keys.shape[-2], True


class GrowingCache(Cache):
    """A `GrowingLayer` for every layer of the model, made as the model first asks for it."""

    def __init__(self, layers: int, capacity: int) -> None:
        super().__init__(layers=[GrowingLayer(capacity) for _ in range(layers)])

    def select(self, rows: Tensor, room: int = 0) -> None:
        """Keep these rows in every layer, with so much more room."""
        for layer in self.layers:
            layer.select(rows, room)

    def first(self, rows: int) -> GrowingCache:
        """The first rows of each layer, which the other cache shares until it is written to."""
        part = GrowingCache(len(self.layers), 0)
        for mine, theirs in zip(self.layers, part.layers, strict=True):
            theirs.keys, theirs.values = mine.keys[:rows], mine.values[:rows]
            theirs.capacity, theirs.length, theirs.is_initialized = mine.capacity, mine.length, True
        return part
