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


ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers in a configuration's `layer_types` that keep keys and values and nothing else."""


def keeps_state(model: Any) -> bool:
    """Whether a model keeps a state between tokens (Mamba's kind, convolutions) and not only keys and values.

    transformers has no one name for it. `_is_stateful`, which its own `generate` reads, stands on the classes of most
    such models; others (LFM2, MiniMax) say so only in their configuration's `layer_types`.
    """
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return bool(getattr(model, "_is_stateful", False)) or not ATTENTION_KINDS.issuperset(kinds)


def attends_to_all(config: Any) -> bool:
    """Whether every layer of a model attends to all tokens before it: no sliding window, no chunks, no state.

    Args:
        config: of the model. Newer models list a kind for each layer (`layer_types`); older ones have a
            `sliding_window` or none.
    """
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None


def adapter_refusal(model: Any, name: str) -> str | None:
    """Why PEFT puts no LoRA adapter on a linear layer of this name; None: it does.

    PEFT has no public way to ask. It refuses Mamba's `out_proj`, and in models whose experts were single layers before
    transformers 5 it takes the names that those had (`gate_proj`, ...) for the stack of experts, in every place.

    Args:
        model: the causal language model, without adapters.
        name: the last part of the layer's name.
    """
    from peft import LoraConfig
    from peft.tuners import tuners_utils
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[name])
    check = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
    try:
        if check is not None:
            check(config, model, name)
    except ValueError:
        return "PEFT refuses it in models of Mamba's kind, whose fused kernels read its weight"
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError:
        return STACKED_NAME
    return STACKED_NAME if name not in (config.target_modules or ()) else None


STACKED_NAME = "PEFT takes this name for the model's stacked experts"
