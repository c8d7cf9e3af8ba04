"""Imports foreign code such as plugins: it cannot hang, exit or flood the terminal without an error that names it.

`kit.functions.in_process` restores random states and settings that an import changes. It needs torch; this module does
not, so that a plugin's command starts quickly.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from .redact import scrub

IMPORT_LIMIT = 120.0
"""Most seconds for the import of a file or a plugin in this process."""
PATIENCE = 5.0
"""Seconds after which a message names an import that has not ended."""
REPEAT = 1.0
"""Seconds after which the error of a time limit is raised again, where the code has caught it."""
PRINTED = 2**16
"""Most bytes of an import's output that are shown."""

threads: list[tuple[str, threading.Thread]] = []
"""Threads that imports have started, each with the name of what was imported."""


class ProcessExit(RuntimeError):
    """Code in this process called `os._exit` or `os.abort`, which would have ended it without a message."""


@contextlib.contextmanager
def importing(who: str, remedy: str) -> Iterator[None]:
    """Protect the process while foreign code is imported inside the block.

    The output of the import is shown on stderr once it is done, up to a limit. After `PATIENCE` seconds a message names
    it. It cannot be ended safely from outside, so after `IMPORT_LIMIT` seconds an error is raised in it.

    Args:
        who: names the code: "the plugin x (rlhf-peft-x 1.2)".
        remedy: how to go on without it.

    Raises:
        TimeoutError: the import takes longer than `IMPORT_LIMIT`.
        BaseException: whatever the import raises; a note on Ctrl-C names what was interrupted.
    """
    before = set(threading.enumerate())
    try:
        with (
            _captured_output(who) as terminal,
            _warning_when_slow(who, remedy, terminal),
            no_exit(),
            time_limit(IMPORT_LIMIT),
        ):
            yield
    except KeyboardInterrupt as error:
        error.add_note(f"{who} was being imported. {remedy}")
        raise
    finally:
        threads.extend((who, thread) for thread in threading.enumerate() if thread not in before)


def lasting() -> list[tuple[str, threading.Thread]]:
    """Threads of imports that still run and would keep the program from ending, each with whose import it was."""
    return [(who, thread) for who, thread in threads if thread.is_alive() and not thread.daemon]


# --- what it prints ---


@contextlib.contextmanager
def _captured_output(who: str) -> Iterator[int]:
    """Capture what Python, C or a child process prints, and show its beginning afterwards.

    Yields:
        The file descriptor of the real stderr.
    """
    with tempfile.TemporaryFile() as output:
        try:
            with (
                _redirected_descriptors(output.fileno()) as terminal,
                contextlib.redirect_stdout(sys.stderr),
                _crash_reports(terminal),
            ):
                yield terminal
        finally:
            size = os.fstat(output.fileno()).st_size
            os.lseek(output.fileno(), 0, os.SEEK_SET)
            text = os.read(output.fileno(), PRINTED).decode("utf-8", "replace")
            text = str(scrub(text))
            if size > PRINTED:
                text += f"\n{who} printed {size:,} bytes as it was imported; the rest is left out.\n"
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.write(text if not text or text.endswith("\n") else f"{text}\n")
                sys.stderr.flush()


@contextlib.contextmanager
def _redirected_descriptors(target: int) -> Iterator[int]:
    """Redirect the file descriptors of stdout and stderr to a file inside the block; yields that of the real stderr."""
    saved: dict[int, int] = {}
    _flush()
    for handle in (1, 2):
        with contextlib.suppress(OSError):  # a program without a terminal may have closed them
            saved[handle] = os.dup(handle)
            os.dup2(target, handle)
    try:
        yield saved.get(2, 2)
    finally:
        _flush()
        for handle, real in saved.items():
            os.dup2(real, handle)
            os.close(real)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


@contextlib.contextmanager
def _crash_reports(terminal: int) -> Iterator[None]:
    """Let `faulthandler` report a crash of the interpreter inside the block."""
    if faulthandler.is_enabled():
        yield
        return
    with contextlib.suppress(OSError, ValueError):
        faulthandler.enable(terminal)
    try:
        yield
    finally:
        faulthandler.disable()


# --- how long it takes ---


@contextlib.contextmanager
def _warning_when_slow(who: str, remedy: str, terminal: int) -> Iterator[None]:
    def warn() -> None:
        message = f"{who} has been importing for {PATIENCE:g} s, and may take {IMPORT_LIMIT:g}. {remedy}\n"
        with contextlib.suppress(OSError):
            os.write(terminal, message.encode())

    timer = threading.Timer(PATIENCE, warn)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after some seconds in the main thread; in other threads, and on Windows, there is no limit."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    over = False

    def late(number: int, frame: FrameType | None) -> None:
        if not over:
            raise TimeoutError(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    left = signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT)
    try:
        yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, before)


# --- that it goes on ---


class _Exits:
    """Replaces `os._exit` and `os.abort` while at least one block needs it; children of this process can still exit."""

    def __init__(self) -> None:
        self._lock, self._users, self._pid = threading.Lock(), 0, 0
        self._real: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._pid = os.getpid()
                for name in ("_exit", "abort"):
                    self._real[name] = getattr(os, name)
                    setattr(os, name, self._refusing(name))

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                for name, real in self._real.items():
                    setattr(os, name, real)

    def _refusing(self, name: str) -> Callable[..., Any]:
        def refuse(*status: int) -> None:
            # A reference to this function may be called later, for example at the end of the program.
            if os.getpid() != self._pid or not self._users:
                self._real[name](*status)
            arguments = ", ".join(map(str, status))
            raise ProcessExit(f"it called os.{name}({arguments}), which would end the run")

        return refuse


_exits = _Exits()


def no_exit() -> contextlib.AbstractContextManager[None]:
    """A context in which `os._exit` and `os.abort` raise `ProcessExit` in this process."""
    return _exits
