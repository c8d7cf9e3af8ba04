"""The public surface for plugins: import from here and from nowhere else in the package.

A plugin is one module:

    from rlhf_peft.plugin import Options, RewardBatch, Scores, hookimpl

    class Short:
        class Options(Options):
            per_token: float = Field(0.01, description="Subtracted for each token.")
        roles, scope, timeout = (), "row", None
        def __init__(self, options): self.options = options
        async def score(self, batch): return Scores(row=...)

    @hookimpl
    def rlhf_peft_register_rewards(register):
        register("short", Short)
"""

from __future__ import annotations

from . import maths
from .errors import (
    DataError,
    GuardError,
    ModelError,
    PluginError,
    RewardError,
    RlhfPeftError,
    SamplerError,
    UsageError,
)
from .hookspecs import (
    HOOK_API,
    Algorithm,
    Dataset,
    Options,
    PolicyView,
    Prompt,
    Register,
    RequestContext,
    Reward,
    RunView,
    Sampler,
    hookimpl,
)
from .types import (
    Finish,
    Minibatch,
    Outputs,
    Request,
    RewardBatch,
    Rollout,
    SamplingParams,
    Scored,
    Scores,
    Selection,
    Totals,
)

__all__ = [
    "HOOK_API",
    "Algorithm",
    "DataError",
    "Dataset",
    "Finish",
    "GuardError",
    "Minibatch",
    "ModelError",
    "Options",
    "Outputs",
    "PluginError",
    "PolicyView",
    "Prompt",
    "Register",
    "Request",
    "RequestContext",
    "Reward",
    "RewardBatch",
    "RewardError",
    "RlhfPeftError",
    "Rollout",
    "RunView",
    "Sampler",
    "SamplerError",
    "SamplingParams",
    "Scored",
    "Scores",
    "Selection",
    "Totals",
    "UsageError",
    "hookimpl",
    "maths",
]
