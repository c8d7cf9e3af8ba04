"""Samplers: `cached`."""

from __future__ import annotations

from rlhf_peft.plugin import Register, hookimpl

from .cached import CachedSampler


@hookimpl
def rlhf_peft_register_samplers(register: Register) -> None:
    """Offer the built-in samplers."""
    register("cached", CachedSampler)
