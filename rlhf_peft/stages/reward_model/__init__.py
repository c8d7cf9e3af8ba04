"""Reward modelling: `stage` prepares pairs and roles, `trainer` trains one role, `scoring` measures."""

from .scoring import METRICS
from .stage import run

__all__ = ["METRICS", "run"]
