"""Code of others in the run's own process: what it changes there is put back, and it cannot end the run unnoticed.

Plugins are imported here, and a recipe may ask for a reward in the run's process. A process of its own is safer: what
a thread of such code does later, or what it does past Python's `os` module, is not seen here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import torch

from .compat import put_back_default_device

IMPORT_LIMIT = 120.0
"""Seconds that the import of a file may take in the run's process."""

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

EVERYTHING: tuple[Kept, ...] = (
    *SETTINGS,
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
)
"""The settings, and the states of the generators of random numbers."""


class ProcessExit(RuntimeError):
    """Code in the run's process called `os._exit`, which would have ended the run without a word."""


@contextlib.contextmanager
def undisturbed(kept: tuple[Kept, ...] = SETTINGS) -> Iterator[None]:
    """Call code of others: settings are afterwards as they were, and `os._exit` raises `ProcessExit`.

    Args:
        kept: what is put back; `SETTINGS` leaves random numbers alone, so that each call draws others.
    """
    before = [(write, read()) for read, write in kept]
    try:
        with no_exit():
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


class _Exits:
    """Replaces `os._exit` while anyone asks for it; children of this process end as ever."""

    def __init__(self) -> None:
        self._lock, self._users, self._real = threading.Lock(), 0, os._exit

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._real, self._pid = os._exit, os.getpid()
                os._exit = self._refuse  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                os._exit = self._real

    def _refuse(self, status: int) -> None:
        if os.getpid() != self._pid:
            self._real(status)
        raise ProcessExit(f"it called os._exit({status}), which would end the run")


_exits = _Exits()


def no_exit() -> contextlib.AbstractContextManager[None]:
    """Let `os._exit` raise `ProcessExit` in this process."""
    return _exits


def import_file(path: Path) -> ModuleType:
    """The module of a file, imported into this process once, under a name of its own.

    Modules that lie beside the file are found: first while it is imported, and after all others later on.

    Raises:
        TimeoutError: the import takes longer than `IMPORT_LIMIT`.
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
        with undisturbed(EVERYTHING), _as_program(file), _time_limit(IMPORT_LIMIT):
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


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so long; elsewhere, and on Windows, there is no limit."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    left = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, before)
