"""A layer with a LoRA adapter as one step, forward and backward.

y = x W^T + b + scale (x A^T) B^T.  PEFT adds the adapter's part in five steps, each with a tensor of the output's size,
and copies the 4-bit layer's output first; here nothing of that size is made but the output, and the backward pass keeps
the input and [n, r] numbers.

Left out on purpose: half precision (PEFT has the adapter's part in float32 there, and rows of several roles go its way,
so both would differ), dropout, DoRA and other variants, several adapters at once, int8, GPT-2's transposed layers, and
autocast; these go PEFT's own way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes.functional as bnb
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def install(layer: Any) -> None:
    """Let a layer take the short way whenever it can; a second time does nothing."""
    if (
        not isinstance(layer, LoraLayer)
        or "forward" in layer.__dict__
        or not _is_linear(layer.get_base_layer())
    ):
        return
    layer.forward = Fused(layer)


class Fused:
    """A layer's forward."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._usual: Callable[..., Tensor] = type(layer).forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output for x [..., in]."""
        adapter = None if args or kwargs else self._alone()
        if adapter is None:
            return self._usual(self._layer, x, *args, **kwargs)
        layer = self._layer
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        if x.dtype != down.dtype:
            return self._usual(layer, x)
        out: Tensor = _LoraLinear.apply(x, down, up, layer.get_base_layer(), layer.scaling[adapter])
        return out

    def _alone(self) -> str | None:
        """The one adapter that is active, if nothing but it is to be done."""
        layer = self._layer
        if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
            return None
        adapter: str = layer.active_adapters[0]
        if (
            adapter not in layer.lora_A
            or adapter in layer.lora_variant
            or torch.is_autocast_enabled(layer.lora_A[adapter].weight.device.type)
        ):
            return None
        dropout = layer.lora_dropout[adapter]
        drops = isinstance(dropout, nn.Dropout) and dropout.p > 0 and dropout.training
        return None if drops or layer.lora_B[adapter].bias is not None else adapter


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear or type(layer).__name__ == "Linear4bit"


def _weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """[out, in] dense, of this dtype."""
    weight = layer.weight
    if type(weight).__name__ == "Params4bit":
        weight = bnb.dequantize_4bit(weight.data, weight.quant_state)
    return weight.to(dtype)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, layer: Any, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ down.t()
        weight = _weight(layer, x.dtype)
        out = nn.functional.linear(rows, weight, layer.bias)
        out.addmm_(low, up.t(), alpha=scale)
        ctx.save_for_backward(rows, low, down, up)
        ctx.layer, ctx.scale, ctx.shape = layer, scale, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        rows, low, down, up = ctx.saved_tensors
        out = grad.reshape(-1, grad.shape[-1])
        through = (out @ up).mul_(ctx.scale)
        to_down = through.t() @ rows if ctx.needs_input_grad[1] else None
        to_up = (out.t() @ low).mul_(ctx.scale) if ctx.needs_input_grad[2] else None
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = out @ _weight(ctx.layer, out.dtype)
            to_x = to_x.addmm_(through, down).view(ctx.shape)
        return to_x, to_down, to_up, None, None
