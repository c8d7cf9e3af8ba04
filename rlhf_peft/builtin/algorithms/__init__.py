"""RL algorithms: `ppo`."""

from __future__ import annotations

from rlhf_peft.plugin import Register, hookimpl

from .ppo import Ppo


@hookimpl
def rlhf_peft_register_algorithms(register: Register) -> None:
    """Offer the built-in algorithms."""
    register("ppo", Ppo)
