"""Finds functions and environment variables that foreign code has replaced, and restores them.

The loss of every stage and each metric is computed by these functions. If one of them were replaced, the numbers would
change, and nobody would notice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

MODULES = (
    *("builtins", "json", "math", "os", "random", "time", "numpy", "numpy.random"),
    *("torch", "torch.autograd", "torch.linalg", "torch.nn", "torch.nn.functional", "torch.nn.init"),
    *("torch.nn.utils", "torch.optim", "torch.random", "torch.special", "torch.utils.data"),
)
"""Modules whose functions and classes are compared, beside those of this package."""
CLASSES = (torch.Tensor, torch.nn.Module, torch.nn.Linear, torch.optim.Optimizer, torch.optim.AdamW)
OWN = "rlhf_peft"


class FunctionSnapshot:
    """The functions, methods and environment variables as they are when the object is made."""

    def __init__(self) -> None:
        names = [*MODULES, *(name for name in sys.modules if name.partition(".")[0] == OWN)]
        modules = [module for name in names if (module := sys.modules.get(name)) is not None]
        self._owners = [(owner, dict(vars(owner))) for owner in (*modules, *CLASSES)]
        self._environment = dict(os.environ)

    def put_back(self) -> list[str]:
        """Restore what was replaced; returns the names of the functions and methods, such as `torch.exp`."""
        for name, value in self._environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        return [
            f"{_called(owner)}.{name}" for owner, before in self._owners for name in _put_back(owner, before)
        ]

    def new_variables(self) -> list[str]:
        """The environment variables that were added since then."""
        return sorted(os.environ.keys() - self._environment.keys())


def _put_back(owner: Any, before: Mapping[str, Any]) -> list[str]:
    now = dict(vars(owner))
    replaced = []
    for name, value in before.items():
        if now.get(name) is not value and callable(value) and not _wraps_itself(owner, value, now.get(name)):
            setattr(owner, name, value)
            replaced.append(name)
    if isinstance(owner, type):
        # A method that only a base class had is replaced by one that was set on the class.
        above = [
            name
            for name in now.keys() - before.keys()
            if any(name in vars(base) for base in owner.__mro__[1:])
        ]
        for name in above:
            delattr(owner, name)
            replaced.append(name)
    return replaced


def _wraps_itself(owner: Any, before: Any, value: Any) -> bool:
    """Whether a package has replaced one of its own functions, as torch does with `torch.manual_seed`."""
    if getattr(value, "__name__", None) != getattr(before, "__name__", ""):
        return False
    code = getattr(value, "__code__", None)
    file = code.co_filename if code is not None else _file(getattr(value, "__module__", None))
    home = _file(_module(owner).partition(".")[0])
    if file is None or home is None:
        return False
    folder = Path(home).parent
    return folder in Path(file).parents and "site-packages" not in Path(file).relative_to(folder).parts


def _file(module: Any) -> str | None:
    file = getattr(sys.modules.get(module), "__file__", None) if isinstance(module, str) else None
    return file if isinstance(file, str) else None


def _module(owner: Any) -> str:
    return str(owner.__module__ if isinstance(owner, type) else owner.__name__)


def _called(owner: Any) -> str:
    """The name of a module or class as text: `torch.nn.functional`, `torch.Tensor`."""
    if not isinstance(owner, type):
        return str(owner.__name__)
    return f"{owner.__module__}.{owner.__qualname__}"
