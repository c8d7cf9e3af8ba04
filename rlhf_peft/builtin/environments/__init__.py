"""Environments: `calculator`, a small example."""

from __future__ import annotations

from rlhf_peft.plugin import Register, hookimpl

from .calculator import Calculator


@hookimpl
def rlhf_peft_register_environments(register: Register) -> None:
    """Register the built-in environments."""
    register("calculator", Calculator)
