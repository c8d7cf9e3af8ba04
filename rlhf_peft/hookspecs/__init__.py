"""The hooks, protocols and views of the plugin interface.

A plugin registers rewards, samplers, algorithms, datasets, environments and quantizers by name, and may observe a run.
A recipe chooses by name. `HOOK_API` grows within a major version; a name is deprecated before it is removed.
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
from .views import DecodingModel, PolicyView, Prompt, RequestContext, RunView, SampleContext, TokenDecoder

__all__ = [
    "HOOK_API",
    "PROJECT",
    "REGISTERS",
    "Algorithm",
    "Closeable",
    "Dataset",
    "DeclaresMemory",
    "DecodingModel",
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
