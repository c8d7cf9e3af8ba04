"""Strategies and small helpers that the tests of `maths` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor

NAN = float("nan")


def given(*strategies: Any, **named: Any) -> Callable[[Callable], Callable]:
    """`hypothesis.given`, the same in every run, without a deadline: first calls into torch are slow."""
    settings = hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
    return lambda test: settings(hypothesis.given(*strategies, **named)(test))


@st.composite
def masks(draw: st.DrawFn, rows: int = 4, tokens: int = 9) -> Tensor:
    """Boolean [B, T] with holes, and at least one real token a row."""
    b, t = draw(st.integers(1, rows)), draw(st.integers(1, tokens))
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=b * t, max_size=b * t))).view(b, t)
    forced = draw(st.lists(st.integers(0, t - 1), min_size=b, max_size=b))
    mask[torch.arange(b), forced] = True
    return mask


def noise(shape: tuple[int, ...] | torch.Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spoil(x: Tensor, mask: Tensor) -> Tensor:
    """Put NaN and infinity where the mask is False."""
    rubbish = torch.where(torch.arange(x.numel()).view(x.shape) % 2 == 0, NAN, float("inf"))
    return torch.where(mask, x, rubbish)


def widen(x: Tensor, extra: int) -> Tensor:
    """Add columns of padding on the right (zeros, or False)."""
    return torch.cat([x, x.new_zeros(x.shape[0], extra)], dim=1)
