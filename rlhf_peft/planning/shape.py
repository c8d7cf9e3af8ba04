"""The shape of a model, read from its configuration without any weights, for all architectures of transformers.

The model is made on the meta device, which holds no data; parameters are then counted exactly. Only sizes of
activations are read from the configuration, under the names that most decoders use.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..engine import BaseSpec
from ..engine.base_spec import load_config, resolve_dtype
from ..engine.fast.lean import LeanDecoder
from ..engine.quantize import quantizer_of, refusals, skeleton_of
from ..engine.targets import ALL_LINEAR, linear_layers, targets_of
from ..kit.quantizer import Quantizer, linear_sizes


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer.

    Attributes:
        name: its full name.
        inputs, outputs: its sizes.
        quantized_bytes: of its quantized weight; 0: it is not quantized.
        able: whether it can carry an adapter.
    """

    name: str
    inputs: int
    outputs: int
    quantized_bytes: int = 0
    able: bool = True

    @property
    def quantized(self) -> bool:
        """Whether its weight is quantized."""
        return self.quantized_bytes > 0

    @property
    def numel(self) -> int:
        """Weights, without the bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model that its memory depends on.

    Attributes:
        parameters: all, tied ones once.
        linear: every linear layer but the output embedding.
        plain: values that are never quantized: embeddings, head, norms, biases, stacked experts.
        itemsize: bytes of a value in the compute dtype.
        device: cpu, cuda, ...
        layers, hidden, inner, heads, kv_heads, head_size, vocabulary, positions: of the decoder; `inner` is the width
            of the MLP that one token goes through.
        gated: whether the MLP has a gate.
        qk_norm: whether queries and keys are normalised.
        shares: whether every layer attends to all tokens, so that prompts can be read once.
        lean: whether the default sampler holds a prompt once for its whole group.
    """

    parameters: int
    linear: tuple[Linear, ...]
    plain: int
    itemsize: int
    device: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    positions: int
    gated: bool = True
    qk_norm: bool = False
    shares: bool = True
    lean: bool = False

    def targets(self, target_modules: str | Sequence[str]) -> list[Linear]:
        """The layers that an adapter goes on, matched as PEFT does."""
        able = [layer for layer in self.linear if layer.able]
        if target_modules == ALL_LINEAR:
            return able
        if isinstance(target_modules, str):
            return [layer for layer in able if re.fullmatch(target_modules, layer.name)]
        return [x for x in able if any(x.name == w or x.name.endswith(f".{w}") for w in target_modules)]


def read_shape(source: BaseSpec, device: torch.device) -> Shape:
    """The shape of the model that a source names, quantized as the source says.

    Raises:
        ModelError: there is no configuration, or it is no language model.
    """
    config = load_config(source)
    quantizer = quantizer_of(source, config)
    model = skeleton_of(source, config)
    dtype = resolve_dtype(source.compute_dtype, device)
    return of_model(model, dtype, device.type, quantizer)


def of_model(model: Any, dtype: torch.dtype, device: str, quantizer: Quantizer) -> Shape:
    """The shape of a causal language model, on the meta device or any other, with weights quantized by `quantizer`."""
    able = set(targets_of(model).able)
    layers = linear_layers(model)
    plain = layers if quantizer.bits is None else refusals(model, quantizer, torch.device(device))
    linear = tuple(
        _linear(name, module, None if name in plain else quantizer, able) for name, module in layers.items()
    )
    parameters = sum(p.numel() for p in model.parameters())
    few = sum(layer.numel for layer in linear if layer.quantized)
    return Shape(
        parameters=parameters,
        linear=linear,
        plain=parameters - few,
        itemsize=dtype.itemsize,
        device=device,
        **_decoder(model.config.get_text_config(), linear, model),
    )


def _linear(name: str, module: nn.Module, quantizer: Quantizer | None, able: Collection[str]) -> Linear:
    inputs, outputs = linear_sizes(module)
    return Linear(
        name, inputs, outputs, 0 if quantizer is None else quantizer.bytes(inputs, outputs), name in able
    )


def _decoder(config: Any, linear: Sequence[Linear], model: Any) -> dict[str, Any]:
    """The fields of `Shape` that describe the decoder, read from the model's configuration."""
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    experts = getattr(config, "num_experts_per_tok", None)
    if experts:
        inner = int(experts) * int(getattr(config, "moe_intermediate_size", None) or inner)
    layers = int(config.num_hidden_layers)
    wide = sum(layer.outputs == inner for layer in linear)
    kinds = getattr(config, "layer_types", None)
    full = set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
    return {
        "layers": layers,
        "hidden": hidden,
        "inner": int(inner),
        "heads": heads,
        "kv_heads": int(getattr(config, "num_key_value_heads", None) or heads),
        "head_size": int(getattr(config, "head_dim", None) or hidden // heads),
        "vocabulary": int(config.vocab_size),
        "positions": int(getattr(config, "max_position_embeddings", None) or 2**20),
        "gated": bool(experts) or wide >= 2 * layers,
        "qk_norm": any(name.endswith("q_norm") for name, _ in model.named_modules()),
        "shares": full,
        "lean": LeanDecoder.supports(model),
    }
