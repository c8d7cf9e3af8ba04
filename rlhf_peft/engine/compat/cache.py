"""The base class of our layers of a key-value cache, whatever the release of transformers calls its methods.

`CacheLayerMixin` is abstract, and its abstract methods have changed from release to release: `get_max_cache_shape`
became `get_max_length` in transformers 5.14. If another one is added, every decoding step and every shared prompt stops
with a TypeError; `tests/engine/compat/test_cache.py` fails first, and names this file.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["Cache", "CacheLayer"]


class CacheLayer(CacheLayerMixin):
    """One layer of a cache that holds `length` tokens; a subclass gives `update`.

    Attributes:
        keys: [B, heads, T, d], once there are any.
        values: [B, heads, T, d], once there are any.
        length: T, the tokens that are held.
        capacity: tokens that there is room for; -1: no limit.
    """

    is_sliding = False

    def __init__(self, capacity: int = -1) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Say that there is nothing to make room for; a layer with buffers makes them here."""
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take the keys and values [B, heads, t, d] of new tokens; returns those that the queries attend to."""
        raise NotImplementedError(f"{type(self).__name__} gives no update")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The length that the next attention mask must cover, and its offset."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """The number of tokens that are held."""
        return self.length

    def get_max_length(self) -> int:
        """The number of tokens that there is room for; -1 where there is no limit."""
        return self.capacity

    get_max_cache_shape = get_max_length
