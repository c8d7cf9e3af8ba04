"""Rows of one prompt together."""

from __future__ import annotations

import torch
from torch import Tensor


class Rows:
    """Which prompt each row follows, and its place among the rows of that prompt.

    Args:
        which: [B] int64, the prompt of each row.

    Attributes:
        prompts: [G] int64, those that rows follow.
        most: rows of one prompt, n.
        shape: (G, n) where every prompt has as many rows, one after the other; (B,) otherwise.
    """

    def __init__(self, which: Tensor) -> None:
        prompts, self.group, counts = which.unique(return_inverse=True, return_counts=True)
        self.prompts, self.most = prompts, int(counts.max())
        order = self.group.argsort(stable=True)
        begins = counts.cumsum(0) - counts
        self.slot = torch.empty_like(self.group)
        self.slot[order] = torch.arange(len(which), device=which.device) - begins[self.group[order]]
        even = len(which) == len(prompts) * self.most and bool((order[1:] > order[:-1]).all())
        self.shape = (len(prompts), self.most) if even else (len(which),)

    def gather(self, rows: Tensor) -> Tensor:
        """[G, n, ...]: rows [*shape, ...] by prompt and place, 0 where there is none."""
        if len(self.shape) == 2:
            return rows
        placed = rows.new_zeros(len(self.prompts), self.most, *rows.shape[1:])
        return placed.index_put_((self.group, self.slot), rows)

    def spread(self, placed: Tensor) -> Tensor:
        """[*shape, ...]: the rows again."""
        return placed if len(self.shape) == 2 else placed[self.group, self.slot]
