"""Vectors as columns: the weights stand on the left of every product, the fastest way for few rows on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...head import full_product
from ..small_products import Dense, quick_size

NARROW = 16
"""Columns from which their layout makes no difference to a product."""


class Columns:
    """The layout: vectors are columns, filled up to a number that is quick.

    Attributes:
        features: the dimension along which a vector's numbers lie.
    """

    features = 0

    def vectors(self, rows: Tensor) -> Tensor:
        """[H, B] for rows [B, H], filled up."""
        missing = quick_size(len(rows), rows.device) - len(rows)
        return (nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows).t()

    def rows(self, x: Tensor, count: int) -> Tensor:
        """[B, out] for [out, B], without what was filled up."""
        return x.t()[:count].contiguous()

    def norm(self, norm: Any) -> ColumnNorm:
        """A norm of the model."""
        return ColumnNorm(norm)

    def product(self, *layers: Any) -> ColumnProduct:
        """Linear layers that read the same vectors."""
        return ColumnProduct(*layers)

    def logits(self, head: ColumnProduct, layer: Any, x: Tensor, count: int) -> Tensor:
        """[B, V] for [H, B]; in float32 where CUDA multiplies in half precision."""
        full = full_product(x.t(), layer.weight)
        if full is None:
            return head(x)[:, :count].t()
        return (full if layer.bias is None else full + layer.bias)[:count]


class ColumnProduct:
    """Linear layers that read the same vectors; one product, where their weights may be moved together.

    Args:
        layers: the weights of `Dense` ones become views of one matrix.
    """

    def __init__(self, *layers: Any) -> None:
        if len(layers) > 1 and all(isinstance(layer, Dense) for layer in layers):
            joined = [_join(layers)]
        else:
            joined = [layer.weight for layer in layers]
        self._weights = joined
        self._low_rank = ColumnLowRank.of(layers)
        self._bias: Tensor | None = None
        if any(layer.bias is not None for layer in layers):
            biases = [layer.weight.new_zeros(()) if layer.bias is None else layer.bias for layer in layers]
            every = zip(biases, layers, strict=True)
            self._bias = torch.cat([bias.expand(layer.weight.shape[0]) for bias, layer in every]).unsqueeze(
                -1
            )

    def __call__(self, x: Tensor) -> Tensor:
        """[out, B] for [in, B]."""
        x = _laid(x)
        products = [weight @ x for weight in self._weights]
        out = products[0] if len(products) == 1 else torch.cat(products)
        if self._low_rank is not None:
            self._low_rank.add_to(out, x)
        return out if self._bias is None else out.add_(self._bias)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add the product [out, B] of a single layer."""
        x = _laid(x)
        total.addmm_(self._weights[0], x)
        if self._low_rank is not None:
            self._low_rank.add_to(total, x)
        if self._bias is not None:
            total.add_(self._bias)


@dataclass(frozen=True, slots=True)
class ColumnLowRank:
    """Adapters that are not in the weights of layers which read the same vectors.

    Attributes:
        down: [sum of r, in].
        ups: where a layer's outputs begin and end, where its part of `down`'s result does, and its B [out, r], scaled.
    """

    down: Tensor
    ups: tuple[tuple[slice, slice, Tensor], ...]

    @classmethod
    def of(cls, layers: Sequence[Any]) -> ColumnLowRank | None:
        """Those of some layers; None where no layer has one."""
        downs, ups, row, rank = [], [], 0, 0
        for layer in layers:
            rows, row = slice(row, row + layer.weight.shape[0]), row + layer.weight.shape[0]
            parts = layer.low_rank if isinstance(layer, Dense) else None
            if parts is not None:
                up, down = parts
                ups.append((rows, slice(rank, rank + len(down)), up))
                downs.append(down)
                rank += len(down)
        return cls(torch.cat(downs), tuple(ups)) if downs else None

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add B A x to outputs [out, B], for x [in, B]."""
        low = self.down @ x
        for rows, part, up in self.ups:
            out[rows].addmm_(up, low[part])


def _join(layers: Sequence[Any]) -> Tensor:
    """[sum of out, in]: the layers' weights in one matrix, which they share from now on."""
    before: Tensor | None = layers[0].joined
    if before is not None and all(layer.joined is before for layer in layers):
        return before
    weights = [layer.weight for layer in layers]
    joined = torch.cat([weight.detach() for weight in weights])
    for layer, weight in zip(layers, joined.split([len(weight) for weight in weights]), strict=True):
        layer.weight, layer.joined = nn.Parameter(weight, requires_grad=False), joined
    return joined


def _laid(x: Tensor) -> Tensor:
    """Columns one after the other, where they are few: a CPU multiplies 2 of them in a fifth of the time then."""
    return x.t().contiguous().t() if x.shape[1] < NARROW else x


class ColumnNorm:
    """RMS norm of columns [H, B]: x / sqrt(mean x^2 + eps) * w."""

    def __init__(self, norm: Any) -> None:
        size = len(norm.weight)
        self._weight = (norm.weight.float() * size**0.5).unsqueeze(-1)
        self._epsilon = norm.variance_epsilon * size

    def __call__(self, x: Tensor) -> Tensor:
        """[H, B] for [H, B]."""
        size = torch.linalg.vector_norm(x, dim=0, keepdim=True, dtype=torch.float32)
        by = size.square_().add_(self._epsilon).rsqrt_()
        return (x * by).mul_(self._weight).to(x.dtype)
