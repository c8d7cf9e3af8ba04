"""Reinforcement learning of the policy."""

from .stage import run

__all__ = ["run"]
