"""What other libraries name differently from one release to the next, asked of them instead of assumed.

Each function says what it asks, and since which release there is something to ask. Whoever calls a language model with
a cache takes the cache's keyword from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

CACHE_KEYWORDS = ("cache", "past_key_values")
"""Names under which a model's forward takes its key-value cache, the newest first.

transformers 5.24 renamed `past_key_values` to `cache`; the old name goes in 5.40. Models whose code comes from a hub
repository may keep the old name for longer.
"""


_ARGUMENTS: WeakKeyDictionary[Callable[..., Any], frozenset[str]] = WeakKeyDictionary()


def arguments_of(function: Callable[..., Any]) -> frozenset[str]:
    """The names of the arguments of a function, or of a class that is called; looked up once for each."""
    function = getattr(function, "__func__", function)
    if function not in _ARGUMENTS:
        _ARGUMENTS[function] = frozenset(inspect.signature(function).parameters)
    return _ARGUMENTS[function]


def argument_name(function: Callable[..., Any], *names: str) -> str:
    """The first of these names that a function, or a class that is called, has an argument of.

    Args:
        function: of another library.
        names: of one argument, the newest first.

    Raises:
        TypeError: it has none of them.
    """
    known = arguments_of(function)
    for name in names:
        if name in known:
            return name
    raise TypeError(f"{getattr(function, '__qualname__', function)} takes none of {', '.join(names)}")


def cache_keyword(model: Any) -> str:
    """The keyword under which `model.forward` takes its key-value cache: `cache` or `past_key_values`.

        out = model(input_ids=ids, use_cache=True, **{cache_keyword(model): cache})

    A forward that names neither of them (`**kwargs` alone) is given the name that transformers' own models have.

    Args:
        model: a causal language model of transformers, or its trunk.
    """
    try:
        return argument_name(model.forward, *CACHE_KEYWORDS)
    except TypeError:
        from transformers import LlamaForCausalLM

        return argument_name(LlamaForCausalLM.forward, *CACHE_KEYWORDS)


def enable_checkpointing(model: Any) -> Callable[[dict[str, Any]], None]:
    """The method of a transformers model that turns activation checkpointing on.

    transformers 5.23 calls it `activation_checkpointing_enable`; `gradient_checkpointing_enable` goes in 6.
    """
    new = getattr(model, "activation_checkpointing_enable", None)
    enable: Callable[[dict[str, Any]], None] = new or model.gradient_checkpointing_enable
    return enable


def keeps_state(model: Any) -> bool:
    """Whether a model keeps a state between tokens (Mamba's kind) and not only keys and values of attention.

    transformers has no public name for it: `_is_stateful`, which its own `generate` reads, stands on the classes of
    such models. Where it is gone, samplers that need keys and values would fail at their first step.
    """
    return bool(getattr(model, "_is_stateful", False))


def compute_alike_on_every_cpu(model: Any) -> None:
    """Keep bitsandbytes' 4-bit layers off its bfloat16 kernel for CPUs with AVX512-BF16, as on every other CPU.

    With `support_avx512bf16_for_cpu`, which `Linear4bit` sets where the processor can, a forward in eval mode repacks
    the weights in place: gradients are wrong from then on, logits differ by some 0.05, and a layer whose outputs are
    not whole blocks of the kernel stops with "N must be divisible by block_n". Since bitsandbytes 0.49.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
