"""Writes warnings and log lines of other libraries into the run's log, and not to the terminal.

The program calls `install()` before it imports any of them. From then on

- a Python warning from an installed package or from the standard library is logged and not shown, and no warning
  becomes an error: `PYTHONWARNINGS` and `-W` do not apply;
- log lines of other libraries are logged, and their handlers that write to the terminal do not get them; errors are
  shown all the same;
- warnings and log lines of the user's own files (a reward, a plugin in one file) are shown as usual;
- with `--verbose` everything is shown.

A log has each message of a library once. Messages that come before the run has a folder wait until `write_to` names the
file.

Used from Python, the package installs nothing of this: warnings and logging belong to the program that imports it.
"""

from __future__ import annotations

import json
import logging
import os
import site
import sys
import sysconfig
import time
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from .atomic import never_a_link
from .redact import scrub

PACKAGE = "rlhf_peft"
MOST = 1000
"""Most messages that wait for a file, and most that are remembered so that each is logged once."""
VERBOSE = "RLHF_PEFT_VERBOSE"
"""Environment variable that lets all processes of a run show the messages of libraries."""
PACKAGES = frozenset({"site-packages", "dist-packages", "transformers_modules"})
"""Folders of installed packages, and of code that came with a model."""


class Messages:
    """Collects messages; they wait in memory until there is a file to write them to.

    Attributes:
        verbose: show all messages on stderr, too.
        as_json: show messages as JSON lines.
    """

    def __init__(self) -> None:
        self.verbose, self.as_json = bool(os.environ.get(VERBOSE)), False
        self._waiting: list[str] = []
        self._kept: set[str] = set()
        self._shown: set[str] = set()
        self._path: Path | None = None

    def add(self, text: str, source: str, *, error: bool = False, details: str = "") -> None:
        """Log a message, and show it unless it is a library's.

        Args:
            text: the message, one line or several.
            source: the file whose code it came from.
            error: show it in any case.
            details: a traceback, for the log alone.
        """
        text, library = str(scrub(text)).rstrip(), is_library(source)
        if library and text in self._kept:
            return
        if library and len(self._kept) < MOST:
            self._kept.add(text)
        if not library or ((self.verbose or error) and text not in self._shown):
            self._shown.add(text)
            self._show(text)
        self.keep(f"{text}\n{details}" if details else text)

    def keep(self, text: str) -> None:
        """Write a message into the log, without showing it."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {str(scrub(text)).rstrip()}\n"
        if self._path is None:
            self._waiting = [*self._waiting, line][-MOST:]
        else:
            self._append([line])

    def take(self) -> list[str]:
        """Return the messages that wait for a file, and forget them."""
        lines, self._waiting = self._waiting, []
        return [line.split(" ", 2)[2].rstrip() for line in lines]

    def write_to(self, path: Path | None) -> None:
        """Append waiting and later messages to this file; None: the run is over, and waiting messages are dropped."""
        self._path = path
        lines, self._waiting = self._waiting, []
        if path is None:
            self._kept.clear()
        elif lines:
            self._append(lines)

    def _append(self, lines: list[str]) -> None:
        assert self._path is not None
        try:
            with open(
                self._path, "a", encoding="utf-8", errors="backslashreplace", opener=never_a_link
            ) as file:
                file.write("".join(lines))
        except OSError:
            return  # A log that cannot be written must not end a run.

    def _show(self, text: str) -> None:
        if self.as_json:
            text = json.dumps({"event": "log", "level": "warning", "text": text}, ensure_ascii=False)
        try:
            print(text, file=sys.stderr, flush=True)
        except (OSError, ValueError):
            return


class OwnLog(logging.Handler):
    """A handler that writes the log of this package into the run's log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log record into the run's log."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        keep(f"{level}{record.getMessage()}")


_messages: Messages | None = None


def install(as_json: bool = False) -> None:
    """Handle Python's warnings, and the log lines of other libraries, in this process from now on.

    Args:
        as_json: show messages as JSON lines.
    """
    global _messages
    if _messages is not None:
        return
    _messages = Messages()
    _messages.as_json = as_json
    warnings.resetwarnings()
    warnings.simplefilter("always")
    warnings.simplefilter("ignore", ResourceWarning)  # as Python has it
    warnings.showwarning = _show_warning
    # Libraries make loggers at any time, of their own classes, with their own handlers: all of them call this method.
    logging.Logger.callHandlers = _call_handlers  # type: ignore[method-assign, assignment]


def settings() -> dict[str, bool] | None:
    """The arguments of `install` for another process of the run; None: nothing is installed there."""
    return None if _messages is None else {"as_json": _messages.as_json}


def show_all() -> None:
    """Show the messages of libraries on stderr, also in the processes that this one starts."""
    os.environ[VERBOSE] = "1"
    if _messages is not None:
        _messages.verbose = True


def show_as_json(as_json: bool) -> None:
    """Show messages as JSON lines, or as plain text."""
    if _messages is not None:
        _messages.as_json = as_json


def write_to(path: Path | None) -> None:
    """Write messages to this file from now on; None: the run is over. Does nothing where nothing is installed."""
    if _messages is not None:
        _messages.write_to(path)


def keep(text: str) -> None:
    """Write a message into the log without showing it. Does nothing where nothing is installed."""
    if _messages is not None:
        _messages.keep(text)


def take() -> list[str]:
    """Return the messages that wait for a file, and forget them; for a worker that sends them to the run's process."""
    return [] if _messages is None else _messages.take()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    assert _messages is not None
    _messages.add(f"{_short(filename)}:{lineno}: {category.__name__}: {message}", filename)


_original_call_handlers = logging.Logger.callHandlers


def _call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
    """Replaces `logging.Logger.callHandlers`: handlers that write to the terminal get no records of libraries."""
    if logger.name.split(".")[0] == PACKAGE or not is_library(record.pathname):
        _original_call_handlers(logger, record)
        return
    _collect(record)
    here: logging.Logger | None = logger
    while here is not None:
        for handler in here.handlers:
            if record.levelno >= handler.level and not _on_terminal(handler):
                handler.handle(record)
        here = here.parent if here.propagate else None


def _on_terminal(handler: logging.Handler) -> bool:
    streams = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    return getattr(handler, "stream", None) in streams or type(handler).__module__.startswith("rich.")


def _collect(record: logging.LogRecord) -> None:
    if _messages is None or record.levelno < logging.WARNING:
        return
    try:
        message = record.getMessage()
    except Exception:  # the library's own mistake in formatting
        message = str(record.msg)
    details = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
    text = f"{record.name}: {record.levelname.lower()}: {message}"
    _messages.add(text, record.pathname, error=record.levelno >= logging.ERROR, details=details)


@lru_cache(maxsize=4096)
def is_library(filename: str) -> bool:
    """Whether a file belongs to an installed package, to Python or to this package; true also for what is no file."""
    path = os.path.abspath(filename)
    if not os.path.isfile(path) or PACKAGES & set(Path(path).parts):
        return True
    return any(path.startswith(folder) for folder in _folders())


def _folders() -> tuple[str, ...]:
    known = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    known += [site.getusersitepackages(), os.path.dirname(os.path.abspath(__file__))]
    return tuple({os.path.join(os.path.abspath(folder), "") for folder in known if folder})


def _short(filename: str) -> str:
    """The path of a library's file, without the folder in which packages are installed."""
    parts = Path(filename).parts
    for name in PACKAGES & set(parts):
        return "/".join(parts[len(parts) - parts[::-1].index(name) :])
    return filename
