"""Rewards: `learned`."""

from __future__ import annotations

from rlhf_peft.plugin import Register, hookimpl

from .learned import LearnedReward


@hookimpl
def rlhf_peft_register_rewards(register: Register) -> None:
    """Offer the built-in rewards."""
    register("learned", LearnedReward)
