"""The values that pass between the stages and the plugins.

Letters: N rows of a rollout, n rows of a minibatch, T tokens of the longest row (prompt and completion), P tokens of
one prompt. Everything is indexed by the position of a token in its row: `logps[i, t]` is the log-probability of
token t given the tokens before it; `values[i, t]` is the value of the state before token t is taken. Rows are padded
on the right; a mask, never a token id, says which positions are real.

Left out on purpose: anything that holds a model. What a plugin may do with a model stands in `hookspecs`.
"""

from .batch import Batch, Minibatch, Outputs, Selection
from .needs import EnvironmentStep, MemoryNeeds
from .rewards import RewardBatch, Scores
from .rollout import Finish, Request, Rollout, SamplingParams

__all__ = [
    "Batch",
    "EnvironmentStep",
    "Finish",
    "MemoryNeeds",
    "Minibatch",
    "Outputs",
    "Request",
    "RewardBatch",
    "Rollout",
    "SamplingParams",
    "Scores",
    "Selection",
]
