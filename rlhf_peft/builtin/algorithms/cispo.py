"""`cispo`: GRPO's advantages with importance weights that are clipped, while the gradient of every token is kept.

MiniMax 2025 (arXiv:2506.13585), equations 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import PolicyGradient, maths

from .grpo import Group, GroupOptions


class CispoOptions(GroupOptions):
    """Options of `cispo`. `epsilon_high` is the bound of the weight itself, as in TRL; `epsilon` is not used."""

    epsilon_high: float = Field(
        5.0, gt=0, le=1e6, description="The ratio's weight is at most this; there is no bound below."
    )


class Cispo(Group):
    """Clips the importance weight of a token, but keeps its gradient."""

    Options = CispoOptions
    metrics: ClassVar[Mapping[str, str]] = {
        **PolicyGradient.metrics,
        "policy/loss": "mean over tokens of -sg(min(r, epsilon_high)) A logp, r = exp(logp - old_logp)",
        "clip_ratio/region_mean": "share of tokens with A > 0 whose weight is at its bound",
    }

    def policy_terms(
        self, logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss terms -sg(min(r, epsilon_high)) A logp and the mask of bounded tokens, both [n, T]."""
        cap = self.options.epsilon_high
        bounded = ((logps - old).detach().exp() > cap) & (advantages > 0)
        return maths.cispo_terms(logps, old, advantages, cap), bounded
