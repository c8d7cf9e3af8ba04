"""Plain functions as rewards, and how a worker process is told of them.

`reward.py` is a function in the form that TRL's trainers take; `target.py` says where it can be imported from;
`worker.py` is the process that imports and calls it, and `process.py` the run's side of that process; `rebuild.py`
carries a whole reward and its batches across; `in_process.py` holds what runs in the run's own process in check.
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
