"""Code of others in the run's own process: what it changes there is put back, and it cannot end the run unnoticed.

Plugins are imported here, and a recipe may ask for a reward in the run's process. A process of its own is safer: what
a thread of such code does later, or what it does past Python's `os` module, is not seen here.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.util
import locale
import logging
import os
import random
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ... import foreign
from .compat import put_back_default_device

Kept = tuple[Callable[[], Any], Callable[[Any], Any]]


SETTINGS: tuple[Kept, ...] = (
    (os.getcwd, os.chdir),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, put_back_default_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
)
"""How each setting is read, and how it is put back."""


def _handlers() -> dict[int, Any]:
    """What is called on each signal, where Python knows it."""
    found = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return {number: handler for number, handler in found.items() if handler is not None}


def _handle(handlers: dict[int, Any]) -> None:
    """Call on each signal what was called; only the main thread can say so."""
    for number, handler in handlers.items():
        if signal.getsignal(number) != handler and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)


def _own_log() -> tuple[int, bool, bool, list[logging.Handler]]:
    own = logging.getLogger("rlhf_peft")
    return own.level, own.disabled, own.propagate, [*own.handlers]


def _log_as(was: tuple[int, bool, bool, list[logging.Handler]]) -> None:
    own = logging.getLogger("rlhf_peft")
    own.level, own.disabled, own.propagate, own.handlers = was


def _streams_are(were: tuple[Any, Any, Any, Any]) -> None:
    sys.stdin, sys.stdout, sys.stderr, sys.excepthook = were


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


PROCESS: tuple[Kept, ...] = (
    (_handlers, _handle),
    (_mask, os.umask),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    (lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    (lambda: logging.root.manager.disable, logging.disable),
    (_own_log, _log_as),
    (lambda: (sys.stdin, sys.stdout, sys.stderr, sys.excepthook), _streams_are),
    (lambda: warnings.showwarning, lambda show: setattr(warnings, "showwarning", show)),
    (lambda: logging.Logger.callHandlers, lambda call: setattr(logging.Logger, "callHandlers", call)),
)
"""How the process itself is set up."""
EVERYTHING: tuple[Kept, ...] = (
    *SETTINGS,
    *PROCESS,
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
)
"""The settings, the process, and the states of the generators of random numbers."""


@contextlib.contextmanager
def undisturbed(kept: tuple[Kept, ...] = SETTINGS) -> Iterator[None]:
    """Call code of others: settings are afterwards as they were, and `os._exit` raises an error.

    Args:
        kept: what is put back; `SETTINGS` leaves random numbers alone, so that each call draws others.
    """
    before = [(write, read()) for read, write in kept]
    try:
        with foreign.no_exit():
            yield
    finally:
        for (read, _), (write, value) in zip(kept, before, strict=True):
            _put_back(read, write, value)


def _put_back(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> None:
    """Write a value only where it can have changed: most of these settings cost time to write."""
    try:
        changed = bool(read() != value)
    except (
        OSError,
        ValueError,
        RuntimeError,
    ):  # a folder that is gone; arrays, which are compared item by item
        changed = True
    if changed:
        write(value)


def import_file(path: Path) -> ModuleType:
    """The module of a file, imported into this process once, under a name of its own.

    Modules that lie beside the file are found: first while it is imported, and after all others later on.

    Raises:
        TimeoutError: the import takes longer than `foreign.IMPORT_LIMIT`.
        BaseException: whatever the file raises.
    """
    file = Path(os.path.abspath(path))
    name = f"rlhf_peft_file_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with undisturbed(EVERYTHING), _as_program(file), foreign.time_limit(foreign.IMPORT_LIMIT):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _as_program(file: Path) -> Iterator[None]:
    """The arguments and the first folder for imports that `python FILE` would have."""
    arguments, folder = sys.argv, str(file.resolve().parent)
    _forget_neighbours(file.resolve().parent)
    sys.argv = [str(file)]
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.argv = arguments
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)
        _folders.add(folder)


_folders: set[str] = set()
"""Folders of the files that were imported."""


def _forget_neighbours(folder: Path) -> None:
    """Let a file import the modules beside it, also where a file of another folder has imported some of these names."""
    for name in [path.stem for path in folder.glob("*.py")]:
        there = getattr(sys.modules.get(name), "__file__", None)
        if there and os.path.dirname(os.path.realpath(there)) in _folders - {str(folder)}:
            del sys.modules[name]
