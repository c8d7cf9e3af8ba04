"""The algorithms, samplers, rewards and other things that ship with the package; they are registered as plugins are."""

from __future__ import annotations

from . import algorithms, environments, quantizers, rewards, samplers, tracking
from .tiny import plugin as tiny

PLUGINS = (algorithms, environments, quantizers, rewards, samplers, tiny, tracking)
"""Modules with hook implementations."""
