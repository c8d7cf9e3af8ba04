"""Reinforcement learning of the policy."""

from .loop import run

__all__ = ["run"]
