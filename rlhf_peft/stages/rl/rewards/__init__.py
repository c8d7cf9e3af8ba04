"""The rewards of an RL stage: run in worker processes or on an event loop, checked, normalised, added up."""

from .aggregate import without_end
from .rewards import Pending, Rewards, reward_batch

__all__ = ["Pending", "Rewards", "reward_batch", "without_end"]
