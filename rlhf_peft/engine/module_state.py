"""States of a whole model that are set for a while: its mode, which parameters have gradients, its dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
