"""What a run has lost since a checkpoint was written, and what can be brought back from its checkpoints.

A checkpoint names the hash of every adapter's file that was there, and of the lines that were written until then. The
checkpoints of finished stages hold whole copies of the adapters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic import copy_file, remove_leftovers
from ..errors import RunFolderError
from .checkpoints import Checkpoint, Checkpoints
from .folder import ADAPTERS
from .links import own
from .manifest import sha256


def lost_lines(run: Path, info: Mapping[str, Any]) -> str | None:
    """What is missing or damaged of the lines that were written until a checkpoint; None: nothing is.

    Args:
        run: the run's folder.
        info: of the checkpoint.
    """
    for name, size in info["lines"].items():
        path = run / name
        found = path.stat().st_size if path.is_file() else 0
        if found < size:
            return f"{path}: holds {found:,} bytes, and held {size:,} at the checkpoint"
        wanted = info.get("line_hashes", {}).get(name)
        if wanted is not None and hash_of_beginning(path, size) != wanted:
            return f"{path}: its first {size:,} bytes are not those that were written"
    return None


def hash_of_beginning(path: Path, size: int) -> str:
    """sha256 of the first bytes of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 2**20))):
            found.update(block)
            size -= len(block)
    return found.hexdigest()


def lost_files(run: Path, hashes: Mapping[str, str]) -> list[str]:
    """Of files inside a run, those that are missing or are not what was written."""
    return [
        name
        for name, digest in sorted(hashes.items())
        if not (run / name).is_file() or sha256(run / name) != digest
    ]


def copies(run: Path, hashes: Mapping[str, str]) -> dict[str, Path]:
    """Where checkpoints hold whole copies of an adapter's files.

    Args:
        run: the run's folder.
        hashes: path inside the run to sha256.

    Raises:
        RunFolderError: there is no whole copy of one of them.
    """
    checkpoints = Checkpoints(run)
    found: dict[str, Path] = {}
    for name, digest in hashes.items():
        there = [
            checkpoints.folder / checkpoint / name
            for checkpoint in checkpoints.names()
            if checkpoints.hash_of(checkpoint, name) == digest
        ]
        whole = next((path for path in there if path.is_file() and sha256(path) == digest), None)
        if whole is None:
            raise RunFolderError(
                f"{run / name}: is missing or is not what was written, and no checkpoint of the run holds a whole copy "
                "of it. Bring it back from a copy of yours, or begin again with --overwrite."
            )
        found[name] = whole
    return found


def restore(run: Path, hashes: Mapping[str, str]) -> list[str]:
    """Bring adapters' files back from checkpoints where they are missing or damaged; returns those that were.

    Args:
        run: the run's folder.
        hashes: path inside the run to sha256, of every file of an adapter as it is to be.

    Raises:
        RunFolderError: there is no whole copy of one of them; nothing was touched.
    """
    lost = lost_files(run, hashes)
    for name, source in copies(run, {name: hashes[name] for name in lost}).items():
        target = own(run, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        copy_file(source, target)
    return lost


def adapters_at(found: Checkpoint, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Path inside the run to sha256, of every file of an adapter that was there when a checkpoint was written."""
    known = found.info.get("artifacts", manifest.get("artifacts", {}))
    return {name: digest for name, digest in known.items() if Path(name).parts[0] == ADAPTERS}
