"""Imports code of others: it cannot hang, end the program or flood the terminal without being named.

What its import changes in numbers and settings is put back by `functions.in_process`, which knows torch; this does not,
so that a plugin's command starts quickly.
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
"""Seconds that the import of a file or a plugin may take in this process."""
PATIENCE = 5.0
"""Seconds after which an import that still goes on is named."""
AGAIN = 1.0
"""Seconds after which code that has caught the error of a time limit gets it again."""
PRINTED = 2**16
"""Bytes of what an import prints that are shown."""

threads: list[tuple[str, threading.Thread]] = []
"""Threads that imports have started, with whose import it was."""


class ProcessExit(RuntimeError):
    """Code in this process called `os._exit` or `os.abort`, which would have ended it without a word."""


@contextlib.contextmanager
def importing(who: str, remedy: str) -> Iterator[None]:
    """Import code of others.

    What it prints comes out on stderr once it is done, up to a limit. After `PATIENCE` it is named; it cannot be ended
    safely from outside, so after `IMPORT_LIMIT` it gets an error.

    Args:
        who: names it: "the plugin x (rlhf-peft-x 1.2)".
        remedy: how to go on without it.

    Raises:
        TimeoutError: it takes longer than `IMPORT_LIMIT`.
        BaseException: whatever it raises; Ctrl-C says what was interrupted.
    """
    before = set(threading.enumerate())
    try:
        with (
            _shown(who) as terminal,
            _named_when_slow(who, remedy, terminal),
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
    """The threads of imports that still run and would keep the program from ending."""
    return [(who, thread) for who, thread in threads if thread.is_alive() and not thread.daemon]


# --- what it prints ---


@contextlib.contextmanager
def _shown(who: str) -> Iterator[int]:
    """Keep what Python, C or a child process prints, and show its beginning afterwards; gives the real stderr."""
    with tempfile.TemporaryFile() as kept:
        try:
            with (
                _handles(kept.fileno()) as terminal,
                contextlib.redirect_stdout(sys.stderr),
                _crashes_told(terminal),
            ):
                yield terminal
        finally:
            size = os.fstat(kept.fileno()).st_size
            os.lseek(kept.fileno(), 0, os.SEEK_SET)
            text = os.read(kept.fileno(), PRINTED).decode("utf-8", "replace")
            text = str(scrub(text))
            if size > PRINTED:
                text += f"\n{who} printed {size:,} bytes as it was imported; the rest is left out.\n"
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.write(text if not text or text.endswith("\n") else f"{text}\n")
                sys.stderr.flush()


@contextlib.contextmanager
def _handles(target: int) -> Iterator[int]:
    """Let the handles of stdout and stderr lead to a file meanwhile; gives the real stderr."""
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
def _crashes_told(terminal: int) -> Iterator[None]:
    """Let a crash of the interpreter say in which file it was."""
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
def _named_when_slow(who: str, remedy: str, terminal: int) -> Iterator[None]:
    def name() -> None:
        told = f"{who} has been importing for {PATIENCE:g} s, and may take {IMPORT_LIMIT:g}. {remedy}\n"
        with contextlib.suppress(OSError):
            os.write(terminal, told.encode())

    timer = threading.Timer(PATIENCE, name)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so long; elsewhere, and on Windows, there is no limit."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    over = False

    def late(number: int, frame: FrameType | None) -> None:
        if not over:
            raise TimeoutError(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    left = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, before)


# --- that it goes on ---


class _Exits:
    """Replaces what ends a process at once while anyone asks for it; children of this process end as ever."""

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
            # What was kept may be called later: at the end of the program, say.
            if os.getpid() != self._pid or not self._users:
                self._real[name](*status)
            given = ", ".join(map(str, status))
            raise ProcessExit(f"it called os.{name}({given}), which would end the run")

        return refuse


_exits = _Exits()


def no_exit() -> contextlib.AbstractContextManager[None]:
    """Let `os._exit` and `os.abort` raise `ProcessExit` in this process."""
    return _exits
