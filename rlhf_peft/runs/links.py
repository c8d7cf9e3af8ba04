"""What a run writes and removes stays inside of its folder, also where a part of it has become a link meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import RunFolderError


def own(run: Path, inside: str | Path = "") -> Path:
    """A place inside of a run that is about to be written or removed.

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
    """Refuse to write through a link inside of a run; a run that is replaced loses its links.

    Args:
        path: of the run.
        names: of what a run makes.

    Raises:
        RunFolderError: there is one.
    """
    for name in names:
        place = own(path, name)
        for found in place.rglob("*") if place.is_dir() else ():
            own(path, found.relative_to(path))
