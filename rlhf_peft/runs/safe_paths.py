"""Checks that a run is written inside its output folder, through no link, and does not replace other files."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ..atomic import is_left_over
from ..errors import RunFolderError
from .lock import FILE as LOCK
from .lock import status_of
from .manifest import is_run, read_manifest, remedy

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?<!\.)")


def check_inside(parent: Path, path: Path, name: str) -> None:
    """Refuse a name that is a path, and a link that leads out of the output folder.

    Raises:
        RunFolderError: the run would not be a folder directly inside `parent`.
    """
    if not _NAME.fullmatch(name):
        raise RunFolderError(f"{name!r} cannot name a run: it would not be a folder inside {parent}")
    if path.is_symlink() or path.resolve() != parent.resolve() / name:
        raise RunFolderError(f"{path}: a link that leads out of {parent}. Remove it or set another name=...")


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a path at which a new run cannot be made; nothing is changed.

    Raises:
        RunFolderError: something is in the way, or there is no permission; the message says what to do.
    """
    existing = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not existing.is_dir():
        if existing == path:
            raise RunFolderError(f"{path}: a file is in the way. Move it or set another name=...")
        raise RunFolderError(f"{path}: cannot be made: {existing} is a file. Move it or set output_dir=...")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunFolderError(
            f"{path}: cannot be made: no permission to write into {existing}. Set output_dir=..."
        )
    if existing != path or all(entry.name == LOCK or is_left_over(entry) for entry in path.iterdir()):
        return
    if not is_run(path):
        hint = remedy(path)
        raise RunFolderError(
            f"{path}: holds files that are not a run's, so nothing was touched. Move them or set name=...{hint}"
        )
    if not overwrite:
        status = status_of(path, read_manifest(path))
        holds = "a finished run" if status == "done" else f"a run that is not finished (status {status})"
        raise RunFolderError(f"{path}: holds {holds}. Replace it with --overwrite, or set another name=...")


def remove(path: Path) -> None:
    """Remove a file, a folder with all its content, or a link (but not its target), if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
