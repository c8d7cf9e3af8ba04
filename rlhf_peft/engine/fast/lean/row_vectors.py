"""Vectors as rows, and linear layers of any kind: a card decodes from quantized weights, the adapter beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...compat.lora import BaseTunerLayer, lone_adapter, matrices
from ...head import full_product
from .architecture import base_of


class RowVectors:
    """The layout: vectors are rows.

    Attributes:
        features: the dimension along which a vector's numbers lie.
    """

    features = 1

    def vectors(self, rows: Tensor) -> Tensor:
        """The rows [B, H] as they are."""
        return rows

    def rows(self, x: Tensor, count: int) -> Tensor:
        """The rows [B, out] as they are."""
        return x

    def norm(self, norm: Any) -> Callable[[Tensor], Tensor]:
        """A norm of the model: one kernel where torch has it."""
        size, weight, epsilon = (len(norm.weight),), norm.weight, norm.variance_epsilon
        return lambda x: nn.functional.rms_norm(x, size, weight, epsilon)

    def product(self, *layers: Any) -> RowProduct:
        """Linear layers that read the same vectors."""
        return RowProduct(layers)

    def logits(self, head: RowProduct, layer: Any, x: Tensor, count: int) -> Tensor:
        """[B, V] for [B, H]; in float32 where CUDA multiplies in half precision."""
        full = full_product(x, layer.weight)
        if full is None:
            return head(x)
        return full if layer.bias is None else full + layer.bias


class RowProduct:
    """Linear layers that read the same vectors.

    Each layer multiplies as it does by itself: bitsandbytes reads weights in 4 bits where rows are few. The adapters of
    all of them are two products.

    Args:
        layers: of the base, or PEFT's layers around them.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = [base_of(layer) for layer in layers]
        self._low_rank: _LowRank | None = None
        self._outer = layers

    def __call__(self, x: Tensor) -> Tensor:
        """[B, out of all] for [B, in]."""
        parts = [layer(x) for layer in self._layers]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        low_rank = self._adapters(x.dtype)
        return out if low_rank is None else out.addmm_(x @ low_rank.down, low_rank.up)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add the product [B, out] of a single layer."""
        total.add_(self._layers[0](x))
        low_rank = self._adapters(x.dtype)
        if low_rank is not None:
            total.addmm_(x @ low_rank.down, low_rank.up)

    def _adapters(self, dtype: torch.dtype) -> _LowRank | None:
        """The adapters in the dtype of the vectors, made when they are first used."""
        if self._outer:
            self._low_rank, self._outer = _LowRank.of(self._outer, dtype), ()
        return self._low_rank


@dataclass(frozen=True, slots=True)
class _LowRank:
    """The updates of several layers as one pair of matrices.

    Attributes:
        down: [in, R], all A^T side by side.
        up: [R, out of all], scale * B^T of each layer where its rows and columns are, 0 elsewhere.
    """

    down: Tensor
    up: Tensor

    @classmethod
    def of(cls, layers: Sequence[Any], dtype: torch.dtype) -> _LowRank | None:
        """Of layers whose adapter is active; None where none of them has one."""
        each = [matrices(layer, _active(layer)) for layer in layers]
        ranks = [0 if lora is None else len(lora.down) for lora in each]
        if not sum(ranks):
            return None
        sizes = [int(base_of(layer).out_features) for layer in layers]
        first = next(lora for lora in each if lora is not None)
        up = torch.zeros(sum(ranks), sum(sizes), dtype=dtype, device=first.up.device)
        rank = column = 0
        for lora, many, size in zip(each, ranks, sizes, strict=True):
            if lora is not None:
                up[rank : rank + many, column : column + size] = (lora.scale * lora.up.detach().t()).to(dtype)
            rank, column = rank + many, column + size
        down = torch.cat([lora.down.detach().t() for lora in each if lora is not None], dim=1)
        return cls(down.to(dtype).contiguous(), up)


def _active(layer: Any) -> str | None:
    """The adapter that a layer's forward goes through."""
    return lone_adapter(layer) if isinstance(layer, BaseTunerLayer) else None
