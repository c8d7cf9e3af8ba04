"""Samplers: `cached` (the default), `hf`, `vllm_server`, and `best_of_n` around any of them."""

from __future__ import annotations

from rlhf_peft.plugin import Register, hookimpl

from .best_of_n import BestOfNSampler
from .cached import CachedSampler
from .hf import HfSampler
from .vllm_server import VllmServerSampler


@hookimpl
def rlhf_peft_register_samplers(register: Register) -> None:
    """Register the built-in samplers."""
    register("cached", CachedSampler)
    register("hf", HfSampler)
    register("vllm_server", VllmServerSampler)
    register("best_of_n", BestOfNSampler)
