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
from .dense import Dense, quick_size
from .dotted import recipe_keys
from .engine.compat import argument_name, arguments_of, cache_keyword, keeps_state
from .engine.source import check_safetensors
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
from .functions import FunctionOptions, FunctionReward, SomeRowsFailed, Target, function_reward
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
    SampleContext,
    Sampler,
    hookimpl,
)
from .policy_gradient import BASELINE, AlgorithmBase, AlgorithmOptions, PolicyGradient, PolicyOptions
from .quantizer import Quantizer, QuantizerBase, linear_sizes
from .types import (
    Finish,
    LoadCode,
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
    "BASELINE",
    "HOOK_API",
    "Algorithm",
    "AlgorithmBase",
    "AlgorithmOptions",
    "DataError",
    "Dataset",
    "Dense",
    "Finish",
    "FunctionOptions",
    "FunctionReward",
    "GuardError",
    "LoadCode",
    "Minibatch",
    "ModelError",
    "Options",
    "Outputs",
    "PluginError",
    "PolicyGradient",
    "PolicyOptions",
    "PolicyView",
    "Prompt",
    "Quantizer",
    "QuantizerBase",
    "Register",
    "Request",
    "RequestContext",
    "Reward",
    "RewardBatch",
    "RewardError",
    "RlhfPeftError",
    "Rollout",
    "RunView",
    "SampleContext",
    "Sampler",
    "SamplerError",
    "SamplingParams",
    "Scored",
    "Scores",
    "Selection",
    "SomeRowsFailed",
    "Target",
    "Totals",
    "UsageError",
    "argument_name",
    "arguments_of",
    "cache_keyword",
    "check_safetensors",
    "function_reward",
    "hookimpl",
    "keeps_state",
    "linear_sizes",
    "maths",
    "quick_size",
    "recipe_keys",
]
