"""Finds files that a run has lost since a checkpoint was written, and restores adapters from its checkpoints.

A checkpoint has the hash of every adapter's file that existed, and of the lines that were written until then. The
checkpoints of finished stages hold complete copies of the adapters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic import copy_file, remove_leftovers
from ..errors import RunFolderError
from .checkpoints import Checkpoint, Checkpoints
from .layout import ADAPTERS
from .links import path_inside
from .manifest import sha256


def lost_lines(run: Path, info: Mapping[str, Any]) -> str | None:
    """The problem of the lines that were written until a checkpoint, missing or damaged; None: there is none.

    Args:
        run: the run's folder.
        info: of the checkpoint.
    """
    for name, size in info["lines"].items():
        path = run / name
        current_size = path.stat().st_size if path.is_file() else 0
        if current_size < size:
            return f"{path}: holds {current_size:,} bytes, and held {size:,} at the checkpoint"
        expected = info.get("line_hashes", {}).get(name)
        if expected is not None and hash_of_beginning(path, size) != expected:
            return f"{path}: its first {size:,} bytes are not those that were written"
    return None


def hash_of_beginning(path: Path, size: int) -> str:
    """sha256 of the first bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 2**20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def lost_files(run: Path, hashes: Mapping[str, str]) -> list[str]:
    """The files of a run that are missing or have another hash.

    Args:
        run: the run's folder.
        hashes: path inside the run to sha256.
    """
    return [
        name
        for name, digest in sorted(hashes.items())
        if not (run / name).is_file() or sha256(run / name) != digest
    ]


def copies(run: Path, hashes: Mapping[str, str]) -> dict[str, Path]:
    """Where checkpoints hold intact copies of an adapter's files: path inside the run to the copy.

    Args:
        run: the run's folder.
        hashes: path inside the run to sha256.

    Raises:
        RunFolderError: there is no whole copy of one of them.
    """
    checkpoints = Checkpoints(run)
    sources: dict[str, Path] = {}
    for name, digest in hashes.items():
        candidates = [
            checkpoints.folder / checkpoint / name
            for checkpoint in checkpoints.names()
            if checkpoints.hash_of(checkpoint, name) == digest
        ]
        intact = next((path for path in candidates if path.is_file() and sha256(path) == digest), None)
        if intact is None:
            raise RunFolderError(
                f"{run / name}: is missing or is not what was written, and no checkpoint of the run holds a whole copy "
                "of it. Bring it back from a copy of yours, or begin again with --overwrite."
            )
        sources[name] = intact
    return sources


def restore(run: Path, hashes: Mapping[str, str]) -> list[str]:
    """Restore missing or damaged files of adapters from checkpoints; returns the names of those files.

    Args:
        run: the run's folder.
        hashes: path inside the run to sha256, of every file of an adapter as it is to be.

    Raises:
        RunFolderError: there is no whole copy of one of them; nothing was touched.
    """
    lost = lost_files(run, hashes)
    for name, source in copies(run, {name: hashes[name] for name in lost}).items():
        target = path_inside(run, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        copy_file(source, target)
    return lost


def adapters_at(checkpoint: Checkpoint, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Path inside the run to sha256, of every adapter's file that existed when a checkpoint was written."""
    hashes = checkpoint.info.get("artifacts", manifest.get("artifacts", {}))
    return {name: digest for name, digest in hashes.items() if Path(name).parts[0] == ADAPTERS}
