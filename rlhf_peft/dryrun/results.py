"""Fake results of operators, made without asking torch's own fake mode twice for the same shapes.

A dry run repeats a few hundred operators many thousand times. torch's fake mode takes about 0.3 ms for each, most of
it to find out whether it has seen the operator with these arguments before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .compat import FakeTensor, FakeTensorMode, in_fake_kernel, is_plain_view, is_pure, unset_fake_temporarily

Made = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]
"""Shape, strides, dtype and device of a result."""


class Results:
    """Makes results in a fake mode.

    Args:
        mode: of torch.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._made: dict[Any, Made | tuple[Made, ...]] = {}

    def of(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What an operator gives for fake arguments; operators that a mode must see as a whole are left to torch."""
        if not kwargs and args and isinstance(args[0], FakeTensor) and is_plain_view(func):
            with in_fake_kernel(self._mode):
                view = func(*args)
            if isinstance(view, Tensor):
                return FakeTensor(self._mode, view, args[0].fake_device)
        if not is_pure(func):
            with self._mode:
                return func(*args, **kwargs)
        key = _key(func, args, kwargs)
        made = self._made.get(key)
        if made is not None:
            return self._again(made)
        with self._mode:
            out = func(*args, **kwargs)
        if isinstance(out, FakeTensor):
            self._made[key] = _made(out)
        elif isinstance(out, tuple) and out and all(isinstance(x, FakeTensor) for x in out):
            self._made[key] = tuple(_made(x) for x in out)
        return out

    def _again(self, made: Any) -> Any:
        if isinstance(made[0], tuple) and not isinstance(made[0], torch.Size):
            return tuple(self._again(each) for each in made)
        shape, strides, dtype, device = made
        with unset_fake_temporarily():
            empty = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        return FakeTensor(self._mode, empty, device)


def _made(x: Any) -> Made:
    return x.shape, x.stride(), x.dtype, x.fake_device


def _key(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What decides the shape of a result: the operator, shapes, strides, dtypes, devices, and all other arguments."""
    parts: list[Any] = [func]
    for x in args:
        _add(parts, x)
    for name, x in kwargs.items():
        parts.append(name)
        _add(parts, x)
    return tuple(parts)


def _add(parts: list[Any], x: Any) -> None:
    if isinstance(x, FakeTensor):
        parts += (x.shape, x.stride(), x.dtype, x.fake_device)
    elif isinstance(x, list | tuple):
        parts.append(len(x))
        for each in x:
            _add(parts, each)
    else:
        parts += (type(x), x)
