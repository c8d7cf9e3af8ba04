"""Protection against symbolic links in a run's folder, through which files outside it would be written or removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import RunFolderError


def path_inside(run: Path, inside: str | Path = "") -> Path:
    """The path of a file in a run's folder, after a check that no part of it is a link.

    Args:
        run: the run's folder.
        inside: path inside of it.

    Raises:
        RunFolderError: the folder, the place, or a folder between them is a link.
    """
    place = run
    for part in ("", *Path(inside).parts):
        place = place / part
        if place.is_symlink():
            raise RunFolderError(
                f"{place}: a link that leads out of the run, and nothing was written through it. Put what it stands "
                "for back into its place, or remove it and start anew."
            )
    return place


def check_links(path: Path, names: Sequence[str]) -> None:
    """Refuse a run in which a file or folder is a link.

    Args:
        path: the run's folder.
        names: files and folders in it that are checked, with all that they contain.

    Raises:
        RunFolderError: there is one.
    """
    for name in names:
        place = path_inside(path, name)
        for entry in place.rglob("*") if place.is_dir() else ():
            path_inside(path, entry.relative_to(path))
