"""Functions of torch that choose another kernel on a card than on a CPU, as they choose on a card."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine.head import HALF
from .compat import efficient_attention, flash_attention, math_attention
from .mode import on_card

torch_rms_norm = torch.nn.functional.rms_norm
torch_attention = torch.nn.functional.scaled_dot_product_attention


def rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """The root mean square norm, which a card computes by one kernel.

    Builds of torch without CUDA would take it apart. One kernel that reads and writes as much stands in for it, and one
    for its backward pass.
    """
    if not on_card(input) or (weight is not None and weight.requires_grad):
        return torch_rms_norm(input, normalized_shape, weight, eps)
    out: Tensor = _RmsNorm.apply(input)
    return out


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scales = x.new_empty(x.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(x, scales)
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, _ = ctx.saved_tensors
        return grad * x


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention by the kernel that torch chooses on a card: flash, memory-efficient, or plain products.

    It stands in for `torch.nn.functional.scaled_dot_product_attention`; tensors of the CPU take torch's own way.
    """
    if not on_card(query):
        plain: Tensor = torch_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return plain
    grouped = query.shape[1] != key.shape[1]
    if attn_mask is None and query.dtype in HALF:
        out: Tensor = flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        return out
    if grouped:
        return math_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    mask = None
    if attn_mask is not None:
        mask = torch.where(attn_mask, 0.0, -torch.inf) if attn_mask.dtype == torch.bool else attn_mask
        mask = mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    wants = any(x.requires_grad for x in (query, key, value))
    out = efficient_attention(query, key, value, mask, wants, dropout_p, is_causal, scale=scale)[0]
    return out
