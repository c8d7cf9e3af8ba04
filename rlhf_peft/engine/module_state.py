"""States of a whole model that are set for a while: its mode, which parameters have gradients, its dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def mode(model: nn.Module, train: bool) -> Iterator[None]:
    """Train or eval mode; as before on exit.

    All modules are in the mode of the outermost one, PEFT's model, those that are added inside as well. So where that
    one is in the wanted mode, nothing is touched: this is asked for in every forward, and to walk a model of 2,800
    modules takes 30 ms.
    """
    if model.training == train:
        yield
        return
    model.train(train)
    try:
        yield
    finally:
        model.train(not train)


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
