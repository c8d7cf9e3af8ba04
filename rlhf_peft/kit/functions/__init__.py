"""Plain functions as rewards, and the worker processes that call them.

`reward.py` wraps a function in the form that TRL's trainers take. `target.py` says where it can be imported from.
`worker.py` is the process that imports and calls it, and `process.py` the run's side of that process. `rebuild.py`
sends a whole reward and its batches to a worker. `in_process.py` protects the run's own process from code of others.
"""

from __future__ import annotations

from .reward import FunctionOptions, FunctionReward, SomeRowsFailed, function_reward
from .target import FileFunction, Target, target_of

__all__ = [
    "FileFunction",
    "FunctionOptions",
    "FunctionReward",
    "SomeRowsFailed",
    "Target",
    "function_reward",
    "target_of",
]
