"""Products of a dense weight with few rows, as decoding has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEW = 64
"""Rows up to which a CPU is given the product the other way round."""


class Dense(nn.Linear):
    """Stands in for a layer. On a CPU few rows are y = (W x^T)^T, which is computed faster than x W^T.

    Attributes:
        joined: the matrix of several layers' weights, of which this layer's weight is a view; None: it is its own.
        low_rank: scale * B [out, r] and A [r, in] of an adapter that is not in the weight; None: there is none.
    """

    joined: Tensor | None = None
    low_rank: tuple[Tensor, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """[..., out] for [..., in]."""
        out = self._product(input)
        if self.low_rank is None:
            return out
        up, down = self.low_rank
        return out + nn.functional.linear(nn.functional.linear(input, down), up)

    def _product(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, self.in_features)
        count = len(rows)
        if count > FEW or rows.device.type != "cpu":
            return nn.functional.linear(input, self.weight, self.bias)
        if (size := quick_size(count, rows.device)) > count:
            rows = nn.functional.pad(rows, (0, 0, 0, size - count))
        out = (self.weight @ rows.t()).t()[:count]
        if self.bias is not None:
            out = out + self.bias
        return out.view(*input.shape[:-1], self.out_features)


def quick_size(rows: int, device: torch.device) -> int:
    """The next number of rows that is quick on a CPU: 1 runs on one core, 3 take longer than 4, 9 to 15 than 16.

    Products of eight layers of a Llama, 512 wide, on two cores with AVX2, milliseconds for so many rows: 2 6.6, 3 7.5,
    4 6.0, 5 7.4, 6 8.7, 7 11.8, 8 10.8, 10 14.5, 12 16.0, 16 12.3, 20 18.3, 24 16.8, 32 16.5.
    """
    if device.type != "cpu":
        return rows
    return next((size for size in (2, 4, 5, 8, 16) if rows <= size), -(-rows // 8) * 8)
