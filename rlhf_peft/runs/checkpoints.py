"""Checkpoints of a run: written into a temporary folder, hashed and renamed, so that none is ever partial.

    checkpoints/<stage>-<step>/   <stage>-done/
      adapters/<role>/  state.json  state.safetensors  checkpoint.json

checkpoint.json is written last. It holds the hash of every other file, and its own. The caller decides what the other
files contain.
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
from .links import path_inside
from .manifest import MOST_BYTES, sha256
from .plain import plain
from .safe_paths import remove

FOLDER = "checkpoints"
FILE = "checkpoint.json"
FORMAT = "rlhf-peft checkpoint"
VERSION = 2
SEAL = "sha256"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files are complete.

    Attributes:
        path: its folder.
        info: the content of checkpoint.json, with `number` (it counts up) and `files` (path to sha256).
    """

    path: Path
    info: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name: `<stage>-<step>` or `<stage>-done`."""
        return self.path.name


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / FOLDER

    def save(self, name: str, info: Mapping[str, Any], fill: Callable[[Path], None]) -> Checkpoint:
        """Write a checkpoint; earlier ones stay as they are until it is complete.

        Args:
            name: of the checkpoint.
            info: entries for checkpoint.json.
            fill: writes the files into the folder that it is given.

        Raises:
            CheckpointError: it could not be written, because the disk is full, say; nothing is left of it.
            RunFolderError: a link is in the way.
        """
        path_inside(self.run, FOLDER)
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove(temporary)
            temporary.mkdir()
            fill(temporary)
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            for file in files:
                sync(file)
            hashes = {file.relative_to(temporary).as_posix(): sha256(file) for file in files}
            number = max((other["number"] for _, other in self._listed()), default=0) + 1
            content = {
                "format": FORMAT,
                "version": VERSION,
                **info,
                "number": number,
                "files": hashes,
            }
            content = json.loads(json.dumps(plain(content), allow_nan=False))
            text = json.dumps({**content, SEAL: _seal(content)}, indent=2, ensure_ascii=False)
            write_text(temporary / FILE, text + "\n")
            for folder in {file.parent for file in files}:
                sync_folder(folder)
            target = self.folder / name
            if target.exists():
                remove(target)
            os.replace(temporary, target)
            sync_folder(self.folder)
        except BaseException as error:
            with contextlib.suppress(OSError):
                remove(temporary)
            number = error_number(error) if isinstance(error, Exception) else None
            if number is None and not isinstance(error, OSError):
                raise
            reason = str(error) if number is None else os.strerror(number)
            raise CheckpointError(
                f"{self.folder / name}: cannot be written: {reason}. Earlier checkpoints are as they were."
            ) from error
        return Checkpoint(target, content)

    def newest(
        self, check: Callable[[Checkpoint], Any] = lambda checkpoint: None
    ) -> tuple[Checkpoint | None, list[str]]:
        """The newest usable checkpoint, and the problems of those that were passed over.

        A checkpoint is usable if it is complete, and so is the one that its stage began with.

        Args:
            check: raises RunFolderError for a checkpoint that cannot be used.
        """
        problems = [
            f"{path}: not a checkpoint that this version reads, or one whose {FILE} is damaged"
            for path in self._folders()
            if _read(path) is None
        ]
        for path, _ in sorted(self._listed(), key=_number, reverse=True):
            try:
                checkpoint = self.read(path.name)
                if checkpoint.info.get("begun") is not None:
                    self.read(checkpoint.info["begun"])
                check(checkpoint)
            except RunFolderError as error:
                problems.append(str(error))
                continue
            return checkpoint, problems
        return None, problems

    def read(self, name: str) -> Checkpoint:
        """The checkpoint of that name, every file checked against its hash.

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
        """The hash of a checkpoint's file as checkpoint.json has it; None where there is no such file."""
        info = _read(self.folder / name)
        digest = None if info is None else info["files"].get(file)
        return None if digest is None else str(digest)

    def forget_after(self, number: int) -> None:
        """Remove the checkpoints after a number, and unfinished ones that a killed process left behind."""
        path_inside(self.run, FOLDER)
        for path in self.folder.glob("*") if self.folder.is_dir() else ():
            info = _read(path)
            if info is None or info["number"] > number:
                remove(path)

    def remove(self, names: Collection[str]) -> None:
        """Remove the checkpoints of these names."""
        path_inside(self.run, FOLDER)
        for name in names:
            remove(self.folder / name)

    def names(self, stage: str | None = None) -> list[str]:
        """The names of all checkpoints, or of those of one stage, the oldest first."""
        listed = sorted(self._listed(), key=_number)
        return [path.name for path, info in listed if stage is None or info.get("stage") == stage]

    def _folders(self) -> list[Path]:
        entries = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        return [path for path in entries if not path.name.startswith(".")]

    def _listed(self) -> list[tuple[Path, dict[str, Any]]]:
        """Each folder whose checkpoint.json can be read, with its content."""
        return [(path, info) for path in self._folders() if (info := _read(path)) is not None]


def _number(listed: tuple[Path, dict[str, Any]]) -> int:
    return int(listed[1]["number"])


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint's checkpoint.json; None where it cannot be read or is damaged."""
    try:
        info = json.loads(read_small(path / FILE, MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(info, dict) and info.get("format") == FORMAT and info.get("version") == VERSION
    return info if whole and info.pop(SEAL, None) == _seal(info) else None


def _seal(info: Mapping[str, Any]) -> str:
    """sha256 of the content of checkpoint.json."""
    text = json.dumps(info, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
