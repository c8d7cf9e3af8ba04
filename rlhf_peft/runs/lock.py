"""One process writes a run folder; the operating system lets go of the lock when that process ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import RunFolderError
from .links import own

FILE = ".lock"


def is_written(folder: Path) -> bool:
    """Whether a process is writing a run, as far as that can be known."""
    if not (folder / FILE).is_file() or (folder / FILE).is_symlink():
        return False
    held = FileLock(folder / FILE, is_singleton=True)
    if held.is_locked:
        return True
    try:
        held.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    held.release()
    return False


def status_of(folder: Path, manifest: Mapping[str, Any]) -> str:
    """The status of a run: running, done, failed or stopped; killed where it says running and nobody writes it."""
    found = str(manifest.get("status", "unknown"))
    return "killed" if found == "running" and not is_written(folder) else found


def lock(folder: Path) -> FileLock:
    """Take the lock of a run folder that is there; it is held until it is released, or the process ends.

    Raises:
        RunFolderError: another process has it, or a link is in its place.
    """
    held = FileLock(own(folder, FILE), is_singleton=True)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise RunFolderError(
            f"{folder}: another process is writing this run. Wait for it, stop it, or set another name=..."
        ) from None
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be locked: {error}") from None
    return held
