"""Runs foreign code in the run's own process: settings that it changes are restored, and it cannot exit silently.

Plugins are imported here, and a recipe may ask for a reward in the run's process. A worker process is safer: what a
thread of such code does later, or what it does without Python's `os` module, is not noticed here.
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

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]


SETTINGS: tuple[Setting, ...] = (
    (os.getcwd, os.chdir),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, put_back_default_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
)
"""How each setting is read, and how it is restored."""


SIGNALS = tuple(signal.valid_signals())
"""Asked for once, because each call makes a new object of every signal."""


def _signal_handlers() -> dict[int, Any]:
    """The handler of each signal, where Python knows it."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: handler for number, handler in handlers.items() if handler is not None}


def _set_signal_handlers(handlers: dict[int, Any]) -> None:
    """Restore the handlers of signals; only the main thread can set them."""
    for number, handler in handlers.items():
        if signal.getsignal(number) != handler and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)


def _package_log() -> tuple[int, bool, bool, list[logging.Handler]]:
    logger = logging.getLogger("rlhf_peft")
    return logger.level, logger.disabled, logger.propagate, [*logger.handlers]


def _set_package_log(state: tuple[int, bool, bool, list[logging.Handler]]) -> None:
    logger = logging.getLogger("rlhf_peft")
    logger.level, logger.disabled, logger.propagate, logger.handlers = state


def _set_streams(streams: tuple[Any, Any, Any, Any]) -> None:
    sys.stdin, sys.stdout, sys.stderr, sys.excepthook = streams


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


PROCESS: tuple[Setting, ...] = (
    (_signal_handlers, _set_signal_handlers),
    (_umask, os.umask),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    (lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    (lambda: logging.root.manager.disable, logging.disable),
    (_package_log, _set_package_log),
    (lambda: (sys.stdin, sys.stdout, sys.stderr, sys.excepthook), _set_streams),
    (lambda: warnings.showwarning, lambda show: setattr(warnings, "showwarning", show)),
    (lambda: logging.Logger.callHandlers, lambda call: setattr(logging.Logger, "callHandlers", call)),
)
"""Settings of the process itself."""
EVERYTHING: tuple[Setting, ...] = (
    *SETTINGS,
    *PROCESS,
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
)
"""The settings, the process, and the states of the generators of random numbers."""


@contextlib.contextmanager
def preserved_settings(settings: tuple[Setting, ...] = SETTINGS) -> Iterator[None]:
    """Restore settings after the block, in which `os._exit` raises an error.

    Args:
        settings: that are restored; `SETTINGS` leaves random states alone, so that each call draws other numbers.
    """
    before = [(write, read()) for read, write in settings]
    try:
        with foreign.no_exit():
            yield
    finally:
        for (read, _), (write, value) in zip(settings, before, strict=True):
            _write_if_changed(read, write, value)


def _write_if_changed(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> None:
    """Restore a value only where it can have changed, because most settings cost time to write."""
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
    """Import a file into this process, once, under a unique name; returns the module.

    The file can import modules beside it: they are found first during the import, and last afterwards.

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
        with preserved_settings(EVERYTHING), _as_program(file), foreign.time_limit(foreign.IMPORT_LIMIT):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _as_program(file: Path) -> Iterator[None]:
    """Set `sys.argv` and the first folder of `sys.path` as `python FILE` would, inside the block."""
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
    """Forget modules that files of other folders have imported under the names of modules in this folder."""
    for name in [path.stem for path in folder.glob("*.py")]:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and os.path.dirname(os.path.realpath(file)) in _folders - {str(folder)}:
            del sys.modules[name]
