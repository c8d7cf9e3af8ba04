"""What ships with the package, entering by the same door as anybody's plugin."""

from __future__ import annotations

from . import algorithms, environments, quantizers, rewards, samplers, tracking
from .tiny import plugin as tiny

PLUGINS = (algorithms, environments, quantizers, rewards, samplers, tiny, tracking)
"""Modules with hook implementations."""
