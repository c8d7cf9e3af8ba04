"""Prompts that several rows begin with, read once for all of them, with gradients.

A group's completions follow the same prompt. Instead of B rows of prompt and completion the trunk sees each prompt once
and then B completions, which attend to their prompt's keys and values.

Left out on purpose: sliding windows, states of other kinds, and recomputation in the backward pass; `Forwards.shares`
says whether a model can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kit.upload import upload
from ..compat.cache import Cache, CacheLayer

WORTH = 0.8
"""Sharing is used where it leaves less than this share of the tokens."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Rows of a batch taken apart.

    Attributes:
        prompts: [G, P] int64, padded on the left.
        prompt_mask: [G, P], 1 where real.
        which: [B] each row's prompt.
        completions: [B, C] int64, padded on the right.
        places: [B, C + 1] column of the whole rows in which the state of the prompt's last token and of each
            completion token stands; T where there is none.
        width: T, of the whole rows.
    """

    prompts: Tensor
    prompt_mask: Tensor
    which: Tensor
    completions: Tensor
    places: Tensor
    width: int


def share(
    input_ids: Tensor,
    starts: Tensor,
    lengths: Tensor,
    device: torch.device | str = "cpu",
    *,
    worth: float = WORTH,
) -> Shared | None:
    """Take rows apart into distinct prompts and completions; None where that saves too little.

    Args:
        input_ids: [B, T] int64, on the CPU, padded on the right.
        starts: [B] tokens of each row's prompt, at least 1.
        lengths: [B] tokens of each row, more than `starts`.
        device: of the result.
        worth: tokens that are left must be less than this share of all.
    """
    rows = [tuple(row[:start]) for row, start in zip(input_ids.tolist(), starts.tolist(), strict=True)]
    index: dict[tuple[int, ...], int] = {}
    which = [index.setdefault(row, len(index)) for row in rows]
    count, width = input_ids.shape
    longest = max(len(row) for row in index)
    most = int((lengths - starts).max())
    if len(index) * longest + count * most >= worth * count * width:
        return None
    prompts = torch.zeros((len(index), longest), dtype=torch.int64)
    mask = torch.zeros((len(index), longest), dtype=torch.int64)
    for row, place in index.items():
        prompts[place, longest - len(row) :] = torch.tensor(row)
        mask[place, longest - len(row) :] = 1
    columns = torch.arange(most)
    begin, end = starts.unsqueeze(-1), lengths.unsqueeze(-1)
    at = begin + columns
    completions = input_ids.gather(1, at.clamp(max=width - 1))
    places = torch.cat([begin - 1, torch.where(at < end, at, width)], dim=1)
    return Shared(
        upload(prompts, device),
        upload(mask, device),
        upload(torch.tensor(which), device),
        upload(completions, device),
        upload(places, device),
        width,
    )


class PrefixLayer(CacheLayer):
    """Keeps what the first forward gives, and gives it to the rows of the second, which is not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.which: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, T, d] of the prompts, or of each row's prompt and the row."""
        if self.which is None:
            self.is_initialized = True
            self.keys, self.values = key_states, value_states
            self.length = key_states.shape[-2]
            return key_states, value_states
        keys = torch.cat([self.keys[self.which], key_states], dim=-2)
        return keys, torch.cat([self.values[self.which], value_states], dim=-2)


class PrefixCache(Cache):
    """A `PrefixLayer` for every layer of the model."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[PrefixLayer() for _ in range(layers)])

    def hand_out(self, which: Tensor) -> None:
        """From now on, row i follows prompt `which[i]`."""
        for layer in self.layers:
            layer.which = which
