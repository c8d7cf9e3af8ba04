"""Which models the lean step can decode, judged by the modules that they consist of."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...compat import attends_to_all
from ...compat.lora import BaseTunerLayer, lone_adapter, matrices
from ..small_products import Dense

TRUNK = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
NORMS = {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def has_the_shape(model: Any, *, dense: bool) -> bool:
    """Whether a model has the shape.

    Args:
        model: a causal language model.
        dense: its linear layers must be plain ones; if not, they may be quantized and carry a LoRA adapter.
    """
    trunk = model.base_model
    return (
        {name for name, _ in trunk.named_children()} == TRUNK
        and attends_to_all(model.config)
        and all(_is_layer(layer, dense) for layer in trunk.layers)
    )


def needs_no_host(model: Any) -> bool:
    """Whether the host reads no value of the device in a step of a model that has the shape.

    It reads the positions for some kinds of rotary embeddings, and the input of bitsandbytes' int8 layers, in which it
    looks for outliers.
    """
    trunk = model.base_model
    linear = (part for layer in trunk.layers for part in (*layer.self_attn.children(), *layer.mlp.children()))
    outliers = any(getattr(getattr(base_of(part), "state", None), "threshold", 0.0) > 0 for part in linear)
    return not outliers and getattr(trunk.rotary_emb, "rope_type", "") not in ("dynamic", "longrope")


def base_of(layer: Any) -> Any:
    """The layer of the base, without PEFT's layer around it."""
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _is_layer(layer: Any, dense: bool) -> bool:
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if {name for name, _ in layer.named_children()} != LAYER or attention is None or mlp is None:
        return False
    inside = {name for name, _ in attention.named_children()} - {"rotary_emb"}
    linear = [getattr(attention, name, None) for name in ATTENTION]
    linear += [getattr(mlp, name, None) for name in MLP - {"act_fn"}]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(attention, name) for name in NORMS & inside]
    return (
        inside in (ATTENTION, ATTENTION | NORMS)
        and {name for name, _ in mlp.named_children()} == MLP
        and all(_is_plain(part) or (not dense and _is_wrapped(part)) for part in linear)
        and all(hasattr(norm, "variance_epsilon") and hasattr(norm, "weight") for norm in norms)
        and hasattr(attention, "head_dim")
        and hasattr(attention, "scaling")
    )


def _is_plain(part: Any) -> bool:
    """Whether a layer is x W^T + b with a dense W."""
    return type(part) in (nn.Linear, Dense)


def _is_wrapped(part: Any) -> bool:
    """Whether a layer is a linear one of the base, which may be quantized, with at most one plain LoRA update."""
    base = base_of(part)
    if not all(hasattr(base, name) for name in ("in_features", "out_features")):
        return False
    if not isinstance(part, BaseTunerLayer) or part.disable_adapters or not _has_active(part):
        return not (isinstance(part, BaseTunerLayer) and part.merged)
    return matrices(part, lone_adapter(part)) is not None


def _has_active(part: Any) -> bool:
    """Whether one of the active adapters changes this layer."""
    return any(matrices(part, adapter) is not None for adapter in part.active_adapters)
