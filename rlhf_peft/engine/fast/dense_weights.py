"""The policy with its adapter merged into dense weights, for decoding.

Decoding reads every weight for every token; quantized weights would be dequantized each time. Here each layer
stands in for itself with one dense matrix W + scale * B A, built once, dropped at the end. The quantized weights
are never touched.

In half precision W + d is W where |d| is less than half of the distance to the next number. That is true of most of an
adapter with small updates, as the first steps give. The weights of a quantized layer are made in float32, so that they
are rounded once, with the adapter in them. An unquantized layer's weight is such a number already: it stays as it is,
and the adapter's product is added to the layer's output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...kit.quantizer import Quantizer
from ..compat.lora import BaseTunerLayer, matrices
from .small_products import Dense

HEADROOM = 1.5
"""Free memory must be this many times the dense weights."""


def dense_weight(layer: Any, quantizer: Quantizer, dtype: torch.dtype) -> Tensor:
    """[out, in]: a layer's frozen weight, dequantized in a dtype; the layer stays as it is."""
    if quantizer.is_quantized(layer):
        return quantizer.dense_weight(layer, dtype).detach()
    weight: Tensor = layer.weight.detach().to(dtype)
    return weight.T if isinstance(layer, Conv1D) else weight


def _replaceable(model: nn.Module, quantizer: Quantizer) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, layer) of every layer that carries adapters or is quantized."""
    places = []
    inside: set[int] = set()
    for parent in model.modules():
        if id(parent) in inside:
            continue
        for name, child in parent.named_children():
            if isinstance(child, BaseTunerLayer):
                inside.update(id(module) for module in child.modules())
                places.append((parent, name, child))
            elif quantizer.is_quantized(child):
                places.append((parent, name, child))
    return places


def _dense(layer: nn.Module, adapter: str | None, dtype: torch.dtype, quantizer: Quantizer) -> nn.Linear:
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    lora = matrices(layer, adapter)
    apart = dtype != torch.float32 and not quantizer.is_quantized(base)
    weight = dense_weight(base, quantizer, dtype if apart else torch.float32)
    if lora and not apart:
        up, down = lora.up.float(), lora.down.float()
        if quantizer.is_quantized(base):  # The dense weight was made for this, and may be written to.
            weight.addmm_(up, down, alpha=lora.scale)
        else:
            weight = torch.addmm(weight, up, down, alpha=lora.scale)
    dense = _linear(weight)
    dense.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if lora and apart:
        dense.low_rank = ((lora.scale * lora.up.float()).to(dtype), lora.down.to(dtype))
    bias = getattr(base, "bias", None)
    if bias is not None:
        dense.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    dense.training = False
    return dense


def _linear(weight: Tensor) -> Dense:
    """A layer of this shape, without weights."""
    with torch.device("meta"):
        return Dense(weight.shape[1], weight.shape[0], bias=False)


def _same(layer: nn.Linear) -> nn.Linear:
    """The layer with the very same weights, for few rows."""
    same = _linear(layer.weight)
    same.weight, same.bias, same.training = layer.weight, layer.bias, False
    return same


@torch.no_grad()
def dense_weights(
    model: nn.Module, adapter: str | None, quantizer: Quantizer
) -> Iterator[tuple[str, Tensor]]:
    """Path and float32 weight, the adapter merged in, of every layer that carries adapters or is quantized.

    Each weight is laid out as the plain model has it, and built when it is asked for.

    Args:
        model: the causal language model.
        adapter: whose update is added; None: the base alone.
        quantizer: of the base.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    for _, _, layer in _replaceable(model, quantizer):
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        weight = _dense(layer, adapter, torch.float32, quantizer).weight
        yield paths[id(layer)], weight.T if isinstance(base, Conv1D) else weight


def dense_bytes(model: nn.Module, dtype: torch.dtype, quantizer: Quantizer) -> int:
    """Bytes that the dense weights would take."""
    total = 0
    for _, _, layer in _replaceable(model, quantizer):
        base: Any = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        rows, columns = (
            base.weight.shape if isinstance(base, Conv1D) else (base.out_features, base.in_features)
        )
        total += int(rows) * int(columns) * dtype.itemsize
    return total


def fits(model: nn.Module, dtype: torch.dtype, device: torch.device, quantizer: Quantizer) -> bool:
    """Whether the dense weights fit beside what is there, with headroom."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = psutil.virtual_memory().available
    return dense_bytes(model, dtype, quantizer) * HEADROOM < free


@contextmanager
def merged(model: nn.Module, adapter: str | None, dtype: torch.dtype, quantizer: Quantizer) -> Iterator[None]:
    """Inside, forwards go through dense weights with `adapter` merged in (None: the base alone)."""
    places = _replaceable(model, quantizer)
    causal: Any = model
    head = causal.get_output_embeddings()
    plain = [(model, name, child) for name, child in model.named_children() if child is head]
    places += [place for place in plain if type(head) is nn.Linear and head.weight.device.type == "cpu"]
    try:
        with torch.no_grad():
            for parent, name, layer in places:
                setattr(
                    parent, name, _same(layer) if layer is head else _dense(layer, adapter, dtype, quantizer)
                )
        yield
    finally:
        for parent, name, layer in places:
            setattr(parent, name, layer)
