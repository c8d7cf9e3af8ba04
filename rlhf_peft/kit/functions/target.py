"""Where a worker process imports a function from: a module or a file; functions are never pickled."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .in_process import import_file


@dataclass(frozen=True, slots=True)
class Target:
    """The function or class that a worker imports.

    Attributes:
        qualname: dotted name in the module.
        module: name of the module, or None where it is known by its file.
        file: the module's file, or None.
        keywords: bound to the function; JSON.
    """

    qualname: str
    module: str | None = None
    file: str | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The file, or the module's name."""
        return self.file or str(self.module)

    def plain(self) -> dict[str, Any]:
        """The target as JSON."""
        return {
            "qualname": self.qualname,
            "module": self.module,
            "file": self.file,
            "keywords": dict(self.keywords),
        }


class FileFunction:
    """A function of a file; the file is imported only by the process that calls the function.

    A worker process imports the file by `target`. A call in this process imports it here.

    Args:
        file: that defines the function.
        qualname: its name there.
        is_async: whether a call of it is awaited.
    """

    def __init__(self, file: Path, qualname: str, *, is_async: bool = False) -> None:
        self.target = Target(qualname, file=os.path.abspath(file))
        self.is_async = is_async

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import the file into this process, and call the function."""
        return _look_up(import_file(Path(str(self.target.file))), self.target.qualname)(*args, **kwargs)


def target_of(thing: Any) -> Target | None:
    """Where a function or class can be imported from; None where it cannot be: lambdas, closures, instances.

    A `functools.partial` of an importable function has a target too, where its keywords are JSON.
    """
    if isinstance(thing, FileFunction):
        return thing.target
    if isinstance(thing, functools.partial):
        return _of_partial(thing)
    name, module = getattr(thing, "__qualname__", None), sys.modules.get(getattr(thing, "__module__", ""))
    if name is None or module is None or _look_up(module, name) is not thing:
        return None
    if module.__name__ != "__main__" and _importable(module):
        return Target(name, module=module.__name__)
    file = getattr(module, "__file__", None)
    return Target(name, file=os.path.abspath(file)) if file else None


def _of_partial(partial: functools.partial[Any]) -> Target | None:
    inner = target_of(partial.func)
    if inner is None or partial.args or not _is_json(partial.keywords):
        return None
    return Target(inner.qualname, inner.module, inner.file, {**inner.keywords, **partial.keywords})


def _look_up(module: Any, name: str) -> Any:
    try:
        return functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        return None


def _importable(module: Any) -> bool:
    """Whether the import system itself, not only `sys.modules`, finds the module by its name."""
    top = module.__name__.partition(".")[0]
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    return any(finder.find_spec(top, None) is not None for finder in finders)


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False
