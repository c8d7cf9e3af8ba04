"""Checkpoints of a run: written aside, hashed, renamed; complete or absent, never partial.

    checkpoints/<stage>-<step>/   <stage>-done/
      adapters/<role>/  state.json  state.safetensors  checkpoint.json

checkpoint.json comes last and holds the hash of every other file, and its own. What is in the files is the caller's
business.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import error_number, sync, sync_folder, write_text
from ..bounded_read import read_small
from ..errors import CheckpointError, RunFolderError
from .folder import plain
from .links import own
from .manifest import MOST_BYTES, sha256
from .safe_paths import remove

FOLDER = "checkpoints"
FILE = "checkpoint.json"
FORMAT = "rlhf-peft checkpoint"
VERSION = 2
SEAL = "sha256"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One that is whole.

    Attributes:
        path: its folder.
        info: what was written down with it, `number` (it counts up) and `files` (path to sha256) among it.
    """

    path: Path
    info: Mapping[str, Any]

    @property
    def name(self) -> str:
        """`<stage>-<step>` or `<stage>-done`."""
        return self.path.name


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / FOLDER

    def save(self, name: str, info: Mapping[str, Any], fill: Callable[[Path], None]) -> Checkpoint:
        """Write one; others stay as they are until it is there.

        Args:
            name: of the checkpoint.
            info: goes into checkpoint.json.
            fill: writes the files into a folder.

        Raises:
            CheckpointError: it could not be written, because the disk is full, say; nothing is left of it.
            RunFolderError: a link is in the way.
        """
        own(self.run, FOLDER)
        aside = self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove(aside)
            aside.mkdir()
            fill(aside)
            files = sorted(path for path in aside.rglob("*") if path.is_file())
            for file in files:
                sync(file)
            hashes = {file.relative_to(aside).as_posix(): sha256(file) for file in files}
            number = max((found["number"] for _, found in self._listed()), default=0) + 1
            written = {
                "format": FORMAT,
                "version": VERSION,
                **info,
                "number": number,
                "files": hashes,
            }
            written = json.loads(json.dumps(plain(written), allow_nan=False))
            text = json.dumps({**written, SEAL: _seal(written)}, indent=2, ensure_ascii=False)
            write_text(aside / FILE, text + "\n")
            for folder in {file.parent for file in files}:
                sync_folder(folder)
            target = self.folder / name
            if target.exists():
                remove(target)
            os.replace(aside, target)
            sync_folder(self.folder)
        except BaseException as error:
            with contextlib.suppress(OSError):
                remove(aside)
            number = error_number(error) if isinstance(error, Exception) else None
            if number is None and not isinstance(error, OSError):
                raise
            reason = str(error) if number is None else os.strerror(number)
            raise CheckpointError(
                f"{self.folder / name}: cannot be written: {reason}. Earlier checkpoints are as they were."
            ) from error
        return Checkpoint(target, written)

    def newest(
        self, check: Callable[[Checkpoint], Any] = lambda found: None
    ) -> tuple[Checkpoint | None, list[str]]:
        """The newest one that is whole, as is the one that its stage began with; and what is wrong with newer ones.

        Args:
            check: raises RunFolderError for one that cannot be used.
        """
        wrong = [
            f"{path}: not a checkpoint that this version reads, or one whose {FILE} is damaged"
            for path in self._folders()
            if _read(path) is None
        ]
        for path, _ in sorted(self._listed(), key=lambda found: -found[1]["number"]):
            try:
                found = self.read(path.name)
                if found.info.get("begun") is not None:
                    self.read(found.info["begun"])
                check(found)
            except RunFolderError as error:
                wrong.append(str(error))
                continue
            return found, wrong
        return None, wrong

    def read(self, name: str) -> Checkpoint:
        """One by its name, every file checked against its hash.

        Raises:
            RunFolderError: there is none, or it is damaged.
        """
        path = self.folder / name
        info = _read(path) if name == Path(name).name else None
        if info is None:
            raise RunFolderError(f"{path}: not a checkpoint, or one that is damaged")
        for file, digest in info["files"].items():
            if not (path / file).is_file():
                raise RunFolderError(f"{path}: {file} is missing")
            if sha256(path / file) != digest:
                raise RunFolderError(f"{path}: {file} is damaged, its hash is another than was written down")
        return Checkpoint(path, info)

    def hash_of(self, name: str, file: str) -> str | None:
        """The hash that was written down of a checkpoint's file; None where it has no such file."""
        info = _read(self.folder / name)
        found = None if info is None else info["files"].get(file)
        return None if found is None else str(found)

    def forget_after(self, number: int) -> None:
        """Remove what came after one, and what was left by a process that was killed while it wrote."""
        own(self.run, FOLDER)
        for path in self.folder.glob("*") if self.folder.is_dir() else ():
            info = _read(path)
            if info is None or info["number"] > number:
                remove(path)

    def remove(self, names: Collection[str]) -> None:
        """Remove these."""
        own(self.run, FOLDER)
        for name in names:
            remove(self.folder / name)

    def names(self, stage: str | None = None) -> list[str]:
        """Those that there are, or those of one stage, the oldest first."""
        found = sorted(self._listed(), key=lambda found: found[1]["number"])
        return [path.name for path, info in found if stage is None or info.get("stage") == stage]

    def _folders(self) -> list[Path]:
        there = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        return [path for path in there if not path.name.startswith(".")]

    def _listed(self) -> list[tuple[Path, dict[str, Any]]]:
        return [(path, info) for path in self._folders() if (info := _read(path)) is not None]


def _read(path: Path) -> dict[str, Any] | None:
    """What is written down of a checkpoint; None where that cannot be read."""
    try:
        info = json.loads(read_small(path / FILE, MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(info, dict) and info.get("format") == FORMAT and info.get("version") == VERSION
    return info if whole and info.pop(SEAL, None) == _seal(info) else None


def _seal(info: Mapping[str, Any]) -> str:
    """sha256 of all that is written down of a checkpoint."""
    text = json.dumps(info, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
