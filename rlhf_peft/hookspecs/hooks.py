"""The hooks, and the base class of options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pluggy
from pydantic import BaseModel, ConfigDict

from ..types import (
    Batch,
)
from .views import RunView

HOOK_API = 1
PROJECT = "rlhf_peft"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Options(BaseModel):
    """Base class of every plugin's options: unknown keys are refused, and every field needs a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Factory = Callable[[Any], Any]
"""Called with a validated instance of its own `Options`; returns the reward, sampler, algorithm, dataset or
quantizer.

One with `wants_make = True` is also given `make(kind, name, options)`, to make what it wraps.
"""

Register = Callable[[str, Factory], None]


class HookSpecs:
    """The hooks; implement any of them as a module-level function marked with `hookimpl`."""

    @hookspec
    def rlhf_peft_register_rewards(self, register: Register) -> None:
        """Offer rewards: `register(name, factory)`; the factory makes a `Reward`."""

    @hookspec
    def rlhf_peft_register_samplers(self, register: Register) -> None:
        """Offer samplers: `register(name, factory)`; the factory makes a `Sampler`."""

    @hookspec
    def rlhf_peft_register_algorithms(self, register: Register) -> None:
        """Offer RL algorithms: `register(name, factory)`; the factory makes an `Algorithm`."""

    @hookspec
    def rlhf_peft_register_datasets(self, register: Register) -> None:
        """Offer datasets: `register(name, factory)`; the factory makes a `Dataset`."""

    @hookspec
    def rlhf_peft_register_environments(self, register: Register) -> None:
        """Offer environments: `register(name, factory)`; the factory makes an `Environment`, one a conversation."""

    @hookspec
    def rlhf_peft_register_quantizers(self, register: Register) -> None:
        """Offer quantizers: `register(name, factory)`; the factory makes a `Quantizer` of `kit.quantizer`."""

    # --- called by `Registry.broadcast` ---

    @hookspec
    def rlhf_peft_run_start(self, run: RunView) -> None:
        """Called when a run begins: its folder exists, and its data and model can be used."""

    @hookspec
    def rlhf_peft_rollout_end(self, run: RunView, stage: str, step: int, batch: Batch) -> None:
        """Called when the completions of a step have their scores, before the update."""

    @hookspec
    def rlhf_peft_step_end(self, run: RunView, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Called after an update of any stage, with the metrics that were logged."""

    @hookspec
    def rlhf_peft_checkpoint_saved(self, run: RunView, stage: str, step: int, folder: Path) -> None:
        """Called when a stage's adapters, or a checkpoint, were written."""

    @hookspec
    def rlhf_peft_run_end(self, run: RunView, status: str, metrics: Mapping[str, float]) -> None:
        """Called when a run ended as `done`, `failed` or `stopped`, with its last metrics."""


REGISTERS = ("rewards", "samplers", "algorithms", "datasets", "environments", "quantizers")
"""The kinds of things that plugins register; the hook of each is `rlhf_peft_register_<kind>`."""
