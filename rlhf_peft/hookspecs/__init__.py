"""Every hook, and every protocol and view that a plugin meets.

A plugin registers choices (rewards, samplers, algorithms, datasets, quantizers) by name, and may listen to a run. A
recipe chooses by name. `HOOK_API` grows within a major version; what goes is deprecated first.
"""

from .hooks import HOOK_API, PROJECT, REGISTERS, Factory, HookSpecs, Options, Register, hookimpl, hookspec
from .protocols import (
    Algorithm,
    Closeable,
    Dataset,
    DeclaresMemory,
    Environment,
    Reward,
    Sampler,
    Stateful,
    WrappingSampler,
)
from .views import PolicyView, Prompt, RequestContext, RunView, SampleContext, TokenDecoder

__all__ = [
    "HOOK_API",
    "PROJECT",
    "REGISTERS",
    "Algorithm",
    "Closeable",
    "Dataset",
    "DeclaresMemory",
    "Environment",
    "Factory",
    "HookSpecs",
    "Options",
    "PolicyView",
    "Prompt",
    "Register",
    "RequestContext",
    "Reward",
    "RunView",
    "SampleContext",
    "Sampler",
    "Stateful",
    "TokenDecoder",
    "WrappingSampler",
    "hookimpl",
    "hookspec",
]
