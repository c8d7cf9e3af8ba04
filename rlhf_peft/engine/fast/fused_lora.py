"""A layer with a LoRA adapter as one step, forward and backward; and a gated MLP of three of them.

y = x W^T + b + scale (x A^T) B^T.  PEFT adds the adapter's part in five steps, each with a tensor of the output's size,
and copies a quantized layer's output first; here nothing of that size is made but the output, and the backward pass
keeps the input and [n, r] numbers. Of down(silu(gate(x)) * up(x)) it keeps gate(x) and up(x), not what is made of them.

In half precision PEFT copies the input to float32 and computes the adapter's part there: two products without tensor
cores, and a float32 copy of the input that is kept for every layer. Here the products are in the dtype of the input, as
the base's are, and the gradients of A and B are summed in float32, which is the dtype of the adapter.

Left out on purpose: dropout, DoRA and other variants, several adapters at once, layers that round their inputs (int8),
GPT-2's transposed layers, and autocast to another dtype than the input's; these go PEFT's own way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...kit.quantizer import Quantizer
from ..compat.lora import LoraLayer, lone_adapter, matrices
from ..head import HALF
from .dense_weights import dense_weight
from .paths import FastPaths

FEW = 64
"""Rows up to which a quantized layer's own kernel is used where nothing is trained: as many as are decoded at once."""


def install(model: nn.Module, fast: FastPaths, quantizer: Quantizer) -> None:
    """Let layers and MLPs take the short way whenever they can; a second time does nothing.

    Args:
        model: PEFT's model.
        fast: which fast paths are allowed.
        quantizer: of the base.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            if fast.allows("fused_lora"):
                _install_layer(module, fast, quantizer)
        elif fast.allows("gated_mlp") and "forward" not in module.__dict__ and _is_mlp(module, quantizer):
            module.forward = FusedMlp(module, fast)


def _install_layer(layer: Any, fast: FastPaths, quantizer: Quantizer) -> None:
    if "forward" in layer.__dict__ or not _is_linear(layer.get_base_layer(), quantizer):
        return
    layer.forward = FusedLora(layer, fast, quantizer)


class FusedLora:
    """A layer's forward."""

    def __init__(self, layer: Any, fast: FastPaths, quantizer: Quantizer) -> None:
        self._layer, self._fast = layer, fast
        self._frozen = _Frozen(layer.get_base_layer(), quantizer)
        self._plain: Callable[..., Tensor] = type(layer).forward
        self._same: bool | None = None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output for x [..., in]."""
        parts = None if args or kwargs else self.parts(x)
        if parts is not None and self._same is None:
            self._same = self._is_same(x, parts)
        if parts is None or not self._same:
            return self._plain(self._layer, x, *args, **kwargs)
        out: Tensor = _LoraLinear.apply(x, *parts.trained, parts)
        return out

    def _is_same(self, x: Tensor, parts: _Parts) -> bool:
        """Whether the layer computes what its parts make one expect, tried on one row."""
        row = x.detach().reshape(-1, x.shape[-1])[-1:]
        return self._fast.verified_once(
            "fused_lora",
            lambda: parts.forward(row)[0],
            lambda: self._plain(self._layer, row),
            of=self._layer,
        )

    def parts(self, x: Tensor) -> _Parts | None:
        """What the layer is made of, if it may go the short way for x."""
        lora = matrices(self._layer, lone_adapter(self._layer))
        if lora is None or not _computes_in(x.dtype, lora.down.dtype, x.device.type):
            return None
        return _Parts(lora.down, lora.up, self._frozen, lora.scale)


def _computes_in(dtype: torch.dtype, adapter: torch.dtype, device: str) -> bool:
    """Whether inputs of a dtype and an adapter of a dtype are multiplied in the inputs' dtype."""
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != dtype:
        return False
    return dtype == adapter or (adapter == torch.float32 and dtype in HALF)


def _is_linear(layer: nn.Module, quantizer: Quantizer) -> bool:
    """Whether a layer computes x W^T + b with W its dense weight."""
    return quantizer.weight_only if quantizer.is_quantized(layer) else type(layer) is nn.Linear


@dataclass(frozen=True, slots=True)
class _Frozen:
    """A layer of the base, which may be quantized."""

    layer: Any
    quantizer: Quantizer

    @property
    def bias(self) -> Tensor | None:
        """[out], if it has one."""
        bias: Tensor | None = self.layer.bias
        return bias

    def product(self, rows: Tensor) -> Tensor:
        """Outputs [n, out] for rows [n, in].

        On a card the kernels of quantized layers read the weights as they are held, where rows are few. So a token that
        transformers' `generate` decodes does not dequantize the whole model.
        """
        few = len(rows) <= FEW and rows.device.type != "cpu" and not torch.is_grad_enabled()
        if few and self.quantizer.is_quantized(self.layer):
            out: Tensor = self.layer(rows)
            return out
        return nn.functional.linear(rows, self.weight(rows.dtype), self.bias)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """[out, in] dense, of this dtype."""
        return dense_weight(self.layer, self.quantizer, dtype)


@dataclass(slots=True)
class _Parts:
    """A linear layer with its adapter: A [r, in], B [out, r], the frozen layer and the scale."""

    down: Tensor
    up: Tensor
    layer: _Frozen
    scale: float

    @property
    def trained(self) -> tuple[Tensor, Tensor]:
        """A and B."""
        return self.down, self.up

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [n, out] for rows [n, in], and x A^T [n, r]."""
        low = rows @ self.down.t().to(rows.dtype)
        out = self.layer.product(rows)
        out.addmm_(low, self.up.t().to(rows.dtype), alpha=self.scale)
        return out, low

    def backward(
        self, grad: Tensor, rows: Tensor, low: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients in the rows, A and B, those that are needed, from that of the outputs [n, out]."""
        through = (grad @ self.up.to(grad.dtype)).mul_(self.scale)
        to_down = _summed(through.t(), rows, self.down.dtype) if needs[1] else None
        to_up = _summed(grad.t(), low, self.up.dtype).mul_(self.scale) if needs[2] else None
        to_rows = None
        if needs[0]:
            to_rows = grad @ self.layer.weight(grad.dtype)
            to_rows.addmm_(through, self.down.to(grad.dtype))
        return to_rows, to_down, to_up


def _summed(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Left @ right, summed and given in a dtype: gradients of an adapter are sums over all tokens."""
    if left.dtype == dtype:
        return left @ right
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=dtype)
    return left.to(dtype) @ right.to(dtype)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, parts: _Parts) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out, low = parts.forward(rows)
        ctx.save_for_backward(rows, low, down, up)
        ctx.layer, ctx.scale, ctx.shape = parts.layer, parts.scale, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, down, up = ctx.saved_tensors
        parts = _Parts(down, up, ctx.layer, ctx.scale)
        to_x, to_down, to_up = parts.backward(
            grad.reshape(-1, grad.shape[-1]), rows, low, ctx.needs_input_grad
        )
        return None if to_x is None else to_x.view(ctx.shape), to_down, to_up, None


MLP = ("gate_proj", "up_proj", "down_proj")


def _is_mlp(module: nn.Module, quantizer: Quantizer) -> bool:
    """Whether it has the parts of a gated MLP, and no other."""
    names = {name for name, _ in module.named_children()}
    if names != {*MLP, "act_fn"}:
        return False
    layers = [getattr(module, name) for name in MLP]
    bases = [x.get_base_layer() if isinstance(x, LoraLayer) else x for x in layers]
    return all(_is_linear(base, quantizer) for base in bases)


class FusedMlp:
    """An MLP's forward, where a gradient is wanted: down(silu(gate(x)) * up(x))."""

    def __init__(self, module: nn.Module, fast: FastPaths) -> None:
        self._module, self._fast = module, fast
        self._plain: Callable[..., Tensor] = type(module).forward
        self._same: bool | None = None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The MLP's output for x [..., H]."""
        parts = None if args or kwargs or not torch.is_grad_enabled() else self._parts(x)
        if parts is not None and self._same is None:
            self._same = self._is_same(x.detach().reshape(-1, x.shape[-1])[-1:], parts)
        if parts is None or not self._same:
            return self._plain(self._module, x, *args, **kwargs)
        return self._ours(x, parts)

    def _ours(self, x: Tensor, parts: list[_Parts]) -> Tensor:
        out: Tensor = _Mlp.apply(x, *(weight for part in parts for weight in part.trained), parts)
        return out

    def _parts(self, x: Tensor) -> list[_Parts] | None:
        """Of gate, up and down, if all may go the short way."""
        forwards = [getattr(self._module, name).__dict__.get("forward") for name in MLP]
        each = [way.parts(x) if isinstance(way, FusedLora) else None for way in forwards]
        return [part for part in each if part is not None] if None not in each else None

    def _is_same(self, x: Tensor, parts: list[_Parts]) -> bool:
        """Whether the module computes what its parts make one expect, tried on one row."""
        return self._fast.verified_once(
            "gated_mlp",
            lambda: self._ours(x, parts),
            lambda: self._plain(self._module, x),
            of=self._module,
        )


class _Mlp(torch.autograd.Function):
    """h = silu(g) * u with g = gate(x), u = up(x); y = down(h)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> Tensor:
        parts: list[_Parts] = given[-1]
        gate, up, down = parts
        rows = x.reshape(-1, x.shape[-1])
        g, low_g = gate.forward(rows)
        u, low_u = up.forward(rows)
        out, low_d = down.forward(nn.functional.silu(g).mul_(u))
        ctx.save_for_backward(rows, g, u, low_g, low_u, low_d, *given[:-1])
        ctx.layers, ctx.scales = [part.layer for part in parts], [part.scale for part in parts]
        ctx.shape = x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, g, u, low_g, low_u, low_d, *weights = ctx.saved_tensors
        pairs = zip(weights[::2], weights[1::2], ctx.layers, ctx.scales, strict=True)
        gate, up, down = (_Parts(*each) for each in pairs)
        needs = ctx.needs_input_grad
        if g.dtype in HALF:
            active, share = nn.functional.silu(g), None
        else:
            share = torch.sigmoid(g)
            active = g * share
        to_h, *to_down = down.backward(
            grad.reshape(-1, grad.shape[-1]), active * u, low_d, (True, *needs[5:7])
        )
        assert to_h is not None
        if share is None:  # One kernel, which rounds to half precision once.
            to_g = torch.ops.aten.silu_backward(to_h * u, g)
        else:
            # d silu(g) / dg = s (1 + g (1 - s)) = s + silu(g) (1 - s)
            slope = share.add_(active * (1 - share))
            to_g = slope.mul_(to_h).mul_(u)
        from_gate, *to_gate = gate.backward(to_g, rows, low_g, (needs[0], *needs[1:3]))
        from_up, *to_up = up.backward(active.mul_(to_h), rows, low_u, (needs[0], *needs[3:5]))
        to_x = None
        if from_gate is not None and from_up is not None:
            to_x = from_gate.add_(from_up).view(ctx.shape)
        return to_x, *to_gate, *to_up, *to_down, None
