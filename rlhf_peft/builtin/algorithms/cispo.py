"""`cispo`: GRPO's advantages on terms whose weight is clipped and whose gradient is not.

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
    """`epsilon_high` is the weight's bound itself, as in TRL; `epsilon` is not used."""

    epsilon_high: float = Field(
        5.0, gt=0, le=1e6, description="The ratio's weight is at most this; there is no bound below."
    )


class Cispo(Group):
    """Every token keeps its gradient; only its weight is bounded."""

    Options = CispoOptions
    metrics: ClassVar[Mapping[str, str]] = {
        **PolicyGradient.metrics,
        "policy/loss": "mean over tokens of -sg(min(r, epsilon_high)) A logp, r = exp(logp - old_logp)",
        "clip_ratio/region_mean": "share of tokens with A > 0 whose weight is at its bound",
    }

    def policy_terms(
        self, logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-sg(min(r, epsilon_high)) A logp."""
        cap = self.options.epsilon_high
        bounded = ((logps - old).detach().exp() > cap) & (advantages > 0)
        return maths.cispo_terms(logps, old, advantages, cap), bounded
