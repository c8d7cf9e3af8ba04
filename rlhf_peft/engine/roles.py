"""Which adapter is active: read, set and restored as one value.

PEFT's own `set_adapter()` and `disable_adapter()` also change `requires_grad`; here only the two flags that the
forward reads are touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


@dataclass(frozen=True, slots=True)
class Active:
    """The adapters that forwards go through; none means the raw base."""

    adapters: tuple[str, ...]
    disabled: bool


def adapter_layers(model: nn.Module) -> list[BaseTunerLayer]:
    """Every layer that carries adapters."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


class Switch:
    """Sets the active adapter of a PEFT model without touching anything else."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.layers = adapter_layers(model)

    @property
    def active(self) -> Active:
        """What is active now."""
        layer = self.layers[0]
        return Active(tuple(layer.active_adapters), bool(layer.disable_adapters))

    def set(self, active: Active) -> None:
        """Make it so, in every layer."""
        names = list(active.adapters)
        for layer in self.layers:
            layer._active_adapter = names
            layer._disable_adapters = active.disabled
        if names:
            self._model.active_adapter = names[0]
            self._model.base_model.active_adapter = names

    def to(self, adapter: str | None) -> None:
        """Activate one adapter, or none."""
        self.set(Active(self.active.adapters, True) if adapter is None else Active((adapter,), False))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Whatever is switched inside is switched back on exit."""
        before = self.active
        try:
            yield
        finally:
            self.set(before)


@contextmanager
def mode(model: nn.Module, train: bool) -> Iterator[None]:
    """Train or eval mode, restored module by module on exit."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.train(train)
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def requires_grad(model: nn.Module, chosen: set[int]) -> Iterator[None]:
    """Only parameters whose `id` is chosen get gradients; restored on exit."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


@contextmanager
def no_dropout(model: nn.Module) -> Iterator[None]:
    """Every dropout layer passes its input through; restored on exit."""
    before = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    try:
        for module, _ in before:
            module.p = 0.0
        yield
    finally:
        for module, p in before:
            module.p = p
