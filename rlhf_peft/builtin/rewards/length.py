"""`length`: rewards completions near a target length, or penalises overlong ones; in tokens, EOS included."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rlhf_peft.plugin import Options, RewardBatch, Scores


class LengthOptions(Options):
    """Options of `length`: a target with its width, or a maximum with its cache."""

    target: int | None = Field(None, gt=0, le=2**24, description="Best length; scores 1.")
    width: int = Field(
        64, gt=0, le=2**24, description="Tokens from the target at which the score has fallen to 0."
    )
    max: int | None = Field(None, gt=0, le=2**24, description="Longer completions score -1.")
    cache: int = Field(
        0,
        ge=0,
        le=10**8,
        description="Tokens before `max` over which the score falls from 0 to -1; 0: at once.",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> LengthOptions:
        if (self.target is None) == (self.max is None):
            raise ValueError(
                "give `target` (with `width`) for a best length, or `max` (with `cache`) against overlong ones"
            )
        if self.max is not None and self.cache > self.max:
            raise ValueError(f"cache {self.cache} is above max {self.max}")
        return self


def near_target(lengths: Tensor, target: int, width: int) -> Tensor:
    """1 at the target, falling linearly to 0.

    s = max(0, 1 - |L - target| / width)

    Args:
        lengths: [N], number of tokens.
        target: best length.
        width: distance at which the score is 0.

    Returns:
        [N].
    """
    return (1 - (lengths - target).abs() / width).clamp(min=0)


def overlong(lengths: Tensor, longest: int, cache: int) -> Tensor:
    """0 up to `longest - cache`, falling linearly to -1 at `longest`, -1 beyond.

    s = min(0, max(-1, (longest - cache - L) / cache))

    Yu et al. 2025 (DAPO), arXiv:2503.14476, eq. 13.

    Args:
        lengths: [N], number of tokens.
        longest: most tokens.
        cache: width of the slope; 0: no slope.

    Returns:
        [N].
    """
    if cache == 0:
        return -(lengths > longest).float()
    return ((longest - cache - lengths) / cache).clamp(-1, 0)


class LengthReward:
    """Scores the lengths of completions."""

    Options = LengthOptions
    roles: tuple[str, ...] = ()
    timeout: float | None = None

    def __init__(self, options: LengthOptions) -> None:
        self.options = options

    async def score(self, batch: RewardBatch) -> Scores:
        """One score for each completion."""
        o = self.options
        lengths = torch.tensor([float(len(ids)) for ids in batch.completion_ids])
        if o.target is not None:
            return Scores(row=near_target(lengths, o.target, o.width))
        assert o.max is not None
        return Scores(row=overlong(lengths, o.max, o.cache))
