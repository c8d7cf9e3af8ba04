"""Work in a process of its own: one that is killed, or whose files may not grow."""

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def fork() -> int:
    """`os.fork` for children that use torch.

    The first thread of a child that asks for torch's pool of threads makes it anew, and a second one that asks in the
    meantime gets none ("Invalid thread pool!"). So the child makes it while it has one thread.
    """
    child = os.fork()
    if child == 0:
        torch.set_num_threads(torch.get_num_threads())
    return child


def in_child(work: Callable[[], Any]) -> int:
    """Do it in a process of its own; its exit code, or minus the signal that ended it."""
    child = fork()
    if child == 0:
        code = 1
        try:
            told = work()
            code = told if isinstance(told, int) else 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def with_full_disk(work: Callable[[], Any], most: int = 1000) -> int:
    """Do it where the system lets no file grow over so many bytes, as on a disk that is full."""

    def limited() -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return work()

    return in_child(limited)


def killed_at(folder: Path, touch: int, work: Callable[[], Any]) -> bool:
    """Do it in a process that dies as it touches a file below the folder for the n-th time; whether it was killed."""
    events = ("open", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.mkdir", "shutil.rmtree")

    def dying() -> Any:
        count = 0

        def hook(event: str, given: tuple[Any, ...]) -> None:
            nonlocal count
            if event in events and isinstance(given[0], str | Path) and str(given[0]).startswith(str(folder)):
                count += 1
                if count == touch:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        return work()

    code = in_child(dying)
    assert code in (0, -signal.SIGKILL), code
    return code != 0
