"""The public interface for plugins; a plugin imports from here, and from no other module of the package.

A plugin is one module:

    from rlhf_peft.plugin import Options, RewardBatch, Scores, hookimpl

    class Short:
        class Options(Options):
            per_token: float = Field(0.01, description="Subtracted for each token.")
        roles, timeout = (), None
        def __init__(self, options): self.options = options
        async def score(self, batch): return Scores(row=...)

    @hookimpl
    def rlhf_peft_register_rewards(register):
        register("short", Short)
"""

from __future__ import annotations

from . import maths
from .engine.base_spec import check_safetensors
from .engine.compat import keeps_state
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
from .flatten import recipe_keys
from .hookspecs import (
    HOOK_API,
    Algorithm,
    Dataset,
    DecodingModel,
    Environment,
    Options,
    PolicyView,
    Prompt,
    Register,
    RequestContext,
    Reward,
    RunView,
    SampleContext,
    Sampler,
    TokenDecoder,
    hookimpl,
)
from .kit.functions import FunctionOptions, FunctionReward, SomeRowsFailed, Target, function_reward
from .kit.http import AsyncJsonClient, HttpError, JsonClient, environment_secret, plain_url, server_root
from .kit.policy_gradient import BASELINE, AlgorithmBase, AlgorithmOptions, PolicyGradient, PolicyOptions
from .kit.quantizer import LoadCode, Quantizer, QuantizerBase, linear_sizes
from .kit.sampling import (
    DrawOptions,
    LocalOptions,
    LocalSampler,
    Row,
    SamplingOptions,
    by_length,
    draw,
    pad_left,
    provided,
    rollout_of,
    start_rows,
    streams,
    uniforms,
    write_rows,
)
from .types import (
    Batch,
    EnvironmentStep,
    Finish,
    MemoryNeeds,
    Minibatch,
    Outputs,
    Request,
    RewardBatch,
    Rollout,
    SamplingParams,
    Scores,
    Selection,
)

__all__ = [
    "BASELINE",
    "HOOK_API",
    "Algorithm",
    "AlgorithmBase",
    "AlgorithmOptions",
    "AsyncJsonClient",
    "Batch",
    "DataError",
    "Dataset",
    "DecodingModel",
    "DrawOptions",
    "Environment",
    "EnvironmentStep",
    "Finish",
    "FunctionOptions",
    "FunctionReward",
    "GuardError",
    "HttpError",
    "JsonClient",
    "LoadCode",
    "LocalOptions",
    "LocalSampler",
    "MemoryNeeds",
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
    "Row",
    "RunView",
    "SampleContext",
    "Sampler",
    "SamplerError",
    "SamplingOptions",
    "SamplingParams",
    "Scores",
    "Selection",
    "SomeRowsFailed",
    "Target",
    "TokenDecoder",
    "UsageError",
    "by_length",
    "check_safetensors",
    "draw",
    "environment_secret",
    "function_reward",
    "hookimpl",
    "keeps_state",
    "linear_sizes",
    "maths",
    "pad_left",
    "plain_url",
    "provided",
    "recipe_keys",
    "rollout_of",
    "server_root",
    "start_rows",
    "streams",
    "uniforms",
    "write_rows",
]
