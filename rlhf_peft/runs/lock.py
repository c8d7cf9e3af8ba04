"""The lock of a run folder: one process writes it, and the operating system frees the lock when that process ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import RunFolderError
from .links import path_inside

FILE = ".lock"


def is_written(folder: Path) -> bool:
    """Whether some process holds the lock of a run; a lock that cannot be tried counts as held."""
    if not (folder / FILE).is_file() or (folder / FILE).is_symlink():
        return False
    run_lock = FileLock(folder / FILE, is_singleton=True)
    if run_lock.is_locked:
        return True
    try:
        run_lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    run_lock.release()
    return False


def status_of(folder: Path, manifest: Mapping[str, Any]) -> str:
    """The status of a run: running, done, failed or stopped; killed where no process is writing a running one."""
    status = str(manifest.get("status", "unknown"))
    return "killed" if status == "running" and not is_written(folder) else status


def lock(folder: Path) -> FileLock:
    """Acquire the lock of an existing run folder; it is held until it is released, or the process ends.

    Raises:
        RunFolderError: another process has it, or a link is in its place.
    """
    run_lock = FileLock(path_inside(folder, FILE), is_singleton=True)
    try:
        run_lock.acquire(timeout=0)
    except Timeout:
        raise RunFolderError(
            f"{folder}: another process is writing this run. Wait for it, stop it, or set another name=..."
        ) from None
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be locked: {error}") from None
    return run_lock
