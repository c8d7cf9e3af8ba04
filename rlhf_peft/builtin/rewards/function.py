"""A Python function as a reward, in the form that TRL's trainers take; `--reward FILE.py:FUNC` makes one."""

from __future__ import annotations

from rlhf_peft.plugin import FunctionOptions, FunctionReward

__all__ = ["FunctionOptions", "FunctionReward"]
