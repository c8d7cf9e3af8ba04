"""Checks whether the files of a run folder are still those that were written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import RunFolderError
from .checkpoints import Checkpoints
from .layout import ADAPTERS
from .lock import status_of
from .manifest import read_manifest, sha256


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        what: the file or checkpoint that was checked.
        wrong: what is wrong with it and what to do; None: nothing is wrong.
    """

    what: str
    wrong: str | None = None


def verify_files(run: Path) -> Iterator[Check]:
    """Check every file whose hash the manifest has, and every checkpoint; yields one result for each.

    Raises:
        RunFolderError: it is no run folder.
    """
    manifest = read_manifest(run)
    status = status_of(run, manifest)
    yield Check(f"manifest.json: status {status}", None if status == "done" else _unfinished(status))
    hashes = manifest.get("artifacts", {})
    for name, digest in sorted(hashes.items()):
        yield Check(name, _file(run, name, digest))
    adapter_files = {p.relative_to(run).as_posix() for p in (run / ADAPTERS).rglob("*") if p.is_file()}
    for name in sorted(adapter_files - hashes.keys()) if status == "done" else ():
        yield Check(name, "is not in the manifest: it was put there later. Remove it.")
    checkpoints = Checkpoints(run)
    folders = [path for path in checkpoints.folder.glob("*") if not path.name.startswith(".")]
    for path in sorted(folders):
        try:
            checkpoints.read(path.name)
        except RunFolderError as error:
            yield Check(f"checkpoints/{path.name}", f"{error}. A run resumes from the one before it.")
        else:
            yield Check(f"checkpoints/{path.name}")


def _unfinished(status: object) -> str:
    return f"the run is not finished (status {status}). Go on with: rlhf-peft run RECIPE --resume"


def _file(run: Path, name: str, digest: str) -> str | None:
    path = run / name
    try:
        inside = path.resolve().is_relative_to(run.resolve())
    except (ValueError, OSError):  # no name that a file can have
        inside = False
    if not inside:
        return "leads out of the run. Somebody has changed the manifest, or put a link there: remove it."
    if not path.is_file():
        return "is missing. Bring it back from a copy, or run again."
    if sha256(path) != digest:
        return "is another file than was written. Bring it back from a copy, or run again."
    return None
