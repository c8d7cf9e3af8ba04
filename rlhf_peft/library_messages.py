"""What other libraries say, kept off the terminal: warnings and log lines go into the run's log instead.

The command line calls `install()` before it imports anything else. From then on

- a Python warning from an installed package or from the standard library is written down and not shown, and no warning
  is an error: `PYTHONWARNINGS` and `-W` do not apply;
- the same holds for the loggers of other libraries, also of those that would have written to the terminal themselves;
- what comes from the user's own files (a reward, a plugin in one file) is shown as ever;
- `--verbose` shows everything.

Each message is kept once. Those that come before the run has a folder wait until `write_to` names its log.

Used as a library, rlhf_peft installs nothing of this: warnings and logging belong to the program that imports it.
"""

from __future__ import annotations

import logging
import os
import site
import sys
import sysconfig
import time
import warnings
from pathlib import Path
from typing import TextIO

from .scrub import scrub

OURS = "rlhf_peft"
MOST = 1000
"""Messages that are remembered, so that each is kept once; of further ones repetitions are kept too."""
VERBOSE = "RLHF_PEFT_VERBOSE"
"""Environment variable that tells processes of a run to show what libraries say."""


class Messages:
    """Collects messages; they wait in memory until there is a file to write them to.

    Attributes:
        verbose: show everything on stderr, too.
    """

    def __init__(self) -> None:
        self.verbose = bool(os.environ.get(VERBOSE))
        self._waiting: list[str] = []
        self._known: set[str] = set()
        self._path: Path | None = None

    def add(self, text: str, source: str) -> None:
        """Keep a message, once, and show it where it is to be seen.

        Args:
            text: the message, one line or several.
            source: the file whose code it came from.
        """
        text = str(scrub(text)).rstrip()
        if text in self._known:
            return
        if len(self._known) < MOST:
            self._known.add(text)
        if self.verbose or not is_library(source):
            _print(text)
        self.keep(text)

    def keep(self, text: str) -> None:
        """Write a message into the log, without showing it."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        if self._path is None:
            self._waiting = [*self._waiting, line][-MOST:]
        else:
            self._append([line])

    def write_to(self, path: Path | None) -> None:
        """Write what waits, and all that comes, to the end of this file; None: let messages wait again."""
        self._path = path
        if path is not None and self._waiting:
            lines, self._waiting = self._waiting, []
            self._append(lines)

    def _append(self, lines: list[str]) -> None:
        assert self._path is not None
        try:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(lines))
        except OSError:
            return  # A log that cannot be written must not end a run.


class LibraryLogger(logging.Logger):
    """A logger of another library: its records go to the collected messages, whatever handlers it has."""

    def callHandlers(self, record: logging.LogRecord) -> None:
        """Keep the record; loggers of this package work as usual."""
        if record.name.split(".")[0] == OURS:
            super().callHandlers(record)
        else:
            _collect(record)


class _Root(logging.Handler):
    """Stands at the root for loggers that were made before `install`."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] != OURS:
            _collect(record)


class OwnLog(logging.Handler):
    """Writes this package's own log into the run's log, too; what is shown of it others decide."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        if _messages is not None:
            level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
            _messages.keep(str(scrub(f"{level}{record.getMessage()}")))


_messages: Messages | None = None


def install() -> None:
    """Take over Python's warnings, and the loggers of other libraries, in this process."""
    global _messages
    if _messages is not None:
        return
    _messages = Messages()
    warnings.resetwarnings()
    warnings.simplefilter("default")
    warnings.showwarning = _warned
    logging.setLoggerClass(LibraryLogger)
    logging.getLogger().addHandler(_Root())


def show_all() -> None:
    """Show on stderr what libraries say, also in the processes that this one starts."""
    os.environ[VERBOSE] = "1"
    if _messages is not None:
        _messages.verbose = True


def write_to(path: Path | None) -> None:
    """The file that messages go to from now on; None: they wait. Does nothing where nothing is installed."""
    if _messages is not None:
        _messages.write_to(path)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    assert _messages is not None
    text = f"{_short(filename)}:{lineno}: {category.__name__}: {message}"
    _messages.add(text, filename)


def _collect(record: logging.LogRecord) -> None:
    assert _messages is not None
    try:
        said = record.getMessage()
    except Exception:  # the library's own formatting mistake
        said = str(record.msg)
    _messages.add(f"{record.name}: {record.levelname.lower()}: {said}", record.pathname)


def is_library(filename: str) -> bool:
    """Whether a file belongs to an installed package, to Python, or to this package, and is not the user's."""
    if filename.startswith("<"):
        return True
    path = os.path.abspath(filename)
    return any(path.startswith(folder) for folder in _folders()) or bool(
        {"site-packages", "dist-packages"} & set(Path(path).parts)
    )


def _folders() -> tuple[str, ...]:
    known = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    known += [site.getusersitepackages(), os.path.dirname(os.path.abspath(__file__))]
    return tuple({os.path.join(os.path.abspath(folder), "") for folder in known if folder})


def _short(filename: str) -> str:
    """A library's file from its package on: where packages are installed says nothing."""
    parts = Path(filename).parts
    for name in ("site-packages", "dist-packages"):
        if name in parts:
            return "/".join(parts[len(parts) - parts[::-1].index(name) :])
    return filename


def _print(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return
