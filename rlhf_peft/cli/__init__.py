"""The command line: one file for each command, and here what all of them share: exit codes and error messages.

Results go to stdout, everything else to stderr. Nothing heavy is imported until a verb needs it.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import typer

from .. import foreign
from ..errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_HUNG_UP,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EXIT_USAGE,
    RlhfPeftError,
)
from ..redact import scrub
from .app import PROGRAM, app
from .options import Settings
from .terminal import escaped_output

__all__ = ["execute", "main"]

_exit = os._exit
"""The real `os._exit`: while a plugin's code runs, `os._exit` is replaced by a function that raises."""

ADVICE_PLACE = "Name another place to write to, or change its permissions."
ADVICE_SPACE = "Make room on that disk, or name a place on another one."
FILE_SYSTEM_ERRORS = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), ADVICE_PLACE),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), ADVICE_SPACE),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP), "Look at the path."
    ),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "The disk does not work: look at it before you go on."),
    errno.EMFILE: "Raise the limit of open files: ulimit -n 4096.",
}
"""Error numbers of the operating system that are no mistake of this program, and the advice for each."""


class Terminated(KeyboardInterrupt):
    """SIGTERM was received. Code that cleans up after Ctrl-C cleans up after this too."""


class HungUp(Terminated):
    """SIGHUP was received: the terminal was closed, or the connection to it was lost."""


ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Environment variables of torch's allocator, the older name first."""

SIGNALS = {"SIGINT": KeyboardInterrupt, "SIGTERM": Terminated, "SIGHUP": HungUp}
"""Name of each signal that ends a command, and the exception that is raised for it."""
EXIT_CODES = {KeyboardInterrupt: EXIT_INTERRUPTED, Terminated: EXIT_TERMINATED, HungUp: EXIT_HUNG_UP}
ENDINGS = {KeyboardInterrupt: "interrupted", Terminated: "terminated", HungUp: "hung up"}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit."""
    code = execute(sys.argv[1:] if arguments is None else arguments)
    _wait_for_threads(code)
    # Nothing is left to clean up: another Ctrl-C ends what Python itself still does, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Python looks for garbage among all objects as it ends: more than a second for those of the libraries.
    gc.freeze()
    sys.exit(code)


def execute(arguments: Sequence[str]) -> int:
    """Run the program; returns the exit code, see `rlhf_peft.errors`."""
    _wait_shortly()
    _grow_segments()
    settings = Settings()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with escaped_output(), _signals():
        try:
            _invoke(arguments, settings)
            sys.stdout.flush()
            return EXIT_DONE
        except typer.Exit as exit_:
            return exit_.exit_code
        except BaseException as error:
            return _report_error(error, settings)


def _wait_for_threads(code: int) -> None:
    """Wait a while for threads that plugins started while they were imported, and then exit without them."""
    end = time.monotonic() + foreign.PATIENCE
    for _, thread in foreign.lasting():
        thread.join(max(0.0, end - time.monotonic()))
    left = [f"{who}: its thread {thread.name}" for who, thread in foreign.lasting()]
    if left:
        _print_error(
            f"{'; '.join(left)} goes on, and was not waited for any longer. It should be a daemon thread."
        )
        sys.stdout.flush()
        _exit(code)


def _wait_shortly() -> None:
    """Set how long torch's threads spin while they wait for one another, unless the user has set it.

    Small models on a CPU spend their time in short parallel regions. A PPO step of the shipped model on two cores took
    4.2 seconds with threads that sleep at once and 2.3 with 3,000 turns; with another program on one of the cores 3.5
    and 5.8, and 45 with the 100,000 turns that come near to the usual 300,000.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def _grow_segments() -> None:
    """Let torch's allocator on a card grow its segments, unless the user has set something else.

    Rollouts, scoring and updates allocate in other sizes, so that pieces of fixed segments are left that none of them
    can use: 9 to 13 % of the memory of a PPO step. Which of the two names torch reads for this depends on its release,
    so both are set.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        for name in ALLOCATOR_VARIABLES:
            os.environ[name] = "expandable_segments:True"


def _invoke(arguments: Sequence[str], settings: Settings) -> None:
    command = typer.main.get_command(app)
    with command.make_context(PROGRAM, list(arguments), obj=settings) as context:
        command.invoke(context)


def _report_error(error: BaseException, settings: Settings) -> int:
    """Print an error as one paragraph on stderr, and return the exit code."""
    if isinstance(error, BrokenPipeError) and _stdout_is_closed():
        return EXIT_DONE
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    if settings.traceback:
        _print_error("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, KeyboardInterrupt):
        kind = next(kind for kind in (HungUp, Terminated, KeyboardInterrupt) if isinstance(error, kind))
        _print_error(_with_notes(ENDINGS[kind], error))
        return EXIT_CODES[kind]
    if isinstance(error, RlhfPeftError):
        _print_error(
            _with_notes(f"{'stopped (exit 3)' if error.exit_code == 3 else 'error'}: {error}", error)
        )
        return error.exit_code
    if hasattr(error, "format_message"):
        _print_error(f"error: {_usage(error)}")
        return EXIT_USAGE
    if isinstance(error, OSError) and error.errno in FILE_SYSTEM_ERRORS:
        _print_error(_with_notes(f"error: {_refused(error)}", error))
        return EXIT_FAILED
    message = " ".join(str(error).split())
    text = f"error: unexpected {type(error).__name__}{': ' if message else ''}{message}"
    text = _with_notes(text, error)
    _print_error(f"{text}{'' if text.endswith('.') else '.'} For the whole story: {PROGRAM} --traceback ...")
    return EXIT_FAILED


def _with_notes(message: str, error: BaseException) -> str:
    """The message followed by the notes of the error, for example how a run can be resumed."""
    notes = getattr(error, "__notes__", [])
    return " ".join([message if message.endswith(".") else f"{message}.", *notes]) if notes else message


def _refused(error: OSError) -> str:
    """What the file system refused, in one sentence, and what to do about it."""
    where = f"{error.filename}: " if error.filename else ""
    assert error.errno is not None
    return f"{where}{os.strerror(error.errno)}. {FILE_SYSTEM_ERRORS[error.errno]}"


def _usage(error: Any) -> str:
    """The message of one of typer's usage errors, with the command whose help to read."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    message = error.format_message()
    return f"{message}{'' if message.endswith(('.', '?', '!')) else '.'} See {path} --help."


def _print_error(text: str) -> None:
    try:
        print(scrub(text), file=sys.stderr, flush=True)
    except OSError:
        return


def _stdout_is_closed() -> bool:
    """Whether the program that reads our output has closed it, as `head` does; if so, later output is discarded."""
    try:
        handle = sys.stdout.fileno()
        poll = select.poll()
    except (AttributeError, OSError):  # no such handle, or Windows
        return False
    poll.register(handle, select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), handle)
    return True


def _end_at_once() -> None:
    """Mark the runs that are being written as stopped, and print a message; no checkpoint is written."""
    folders: Any = sys.modules.get("rlhf_peft.runs.folder")
    if folders is not None:
        folders.abandon()
    _print_error("interrupted again: ended at once, without a checkpoint of the last update.")


@contextmanager
def _signals() -> Iterator[None]:
    """Raise the first SIGTERM, SIGHUP or Ctrl-C as an exception, so that a run can be saved; a second one exits.

    A signal that is ignored stays ignored: SIGHUP under nohup.
    """
    signals_received = 0
    raised = {getattr(signal, name): error for name, error in SIGNALS.items() if hasattr(signal, name)}

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal signals_received
        signals_received += 1
        if signals_received == 1:
            raise raised[number]
        if signals_received == 2:
            _end_at_once()
        _exit(EXIT_CODES[raised[number]])

    try:
        before = {
            number: signal.signal(number, stop)
            for number in raised
            if signal.getsignal(number) != signal.SIG_IGN
        }
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
