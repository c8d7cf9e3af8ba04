"""What other libraries name differently from one release to the next, asked of them instead of assumed.

Whoever calls a language model with a cache takes the cache's keyword from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

CACHE_KEYWORDS = ("cache", "past_key_values")
"""Names under which a model's forward takes its key-value cache, the newest first.

transformers 5.24 renamed `past_key_values` to `cache`; the old name goes in 5.40. Models whose code comes from a hub
repository may keep the old name for longer.
"""


def cache_keyword(model: Any) -> str:
    """The keyword under which `model.forward` takes its key-value cache: `cache` or `past_key_values`.

        out = model(input_ids=ids, use_cache=True, **{cache_keyword(model): cache})

    A forward that names neither of them (`**kwargs` alone) is given the name that transformers' own models have.

    Args:
        model: a causal language model of transformers, or its trunk.
    """
    forward = model.forward
    return _cache_keyword(getattr(forward, "__func__", forward))


@lru_cache(maxsize=256)
def _cache_keyword(forward: Callable[..., Any]) -> str:
    parameters = inspect.signature(forward).parameters
    for name in CACHE_KEYWORDS:
        if name in parameters:
            return name
    from transformers import LlamaForCausalLM

    return cache_keyword(LlamaForCausalLM)
