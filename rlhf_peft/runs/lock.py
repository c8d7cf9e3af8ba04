"""One process writes a run folder; the operating system lets go of the lock when that process ends."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import RunFolderError

FILE = ".lock"


def lock(folder: Path) -> FileLock:
    """Take the lock of a run folder that is there; it is held until it is released, or the process ends.

    Raises:
        RunFolderError: another process has it.
    """
    held = FileLock(folder / FILE, is_singleton=True)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise RunFolderError(
            f"{folder}: another process is writing this run. Wait for it, stop it, or set another name=..."
        ) from None
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be locked: {error}") from None
    return held
