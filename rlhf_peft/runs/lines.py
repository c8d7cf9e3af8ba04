"""The files of JSON lines in a run's folder, metrics.jsonl and samples.jsonl, while they are written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..atomic import naming, never_a_link
from .links import path_inside
from .plain import plain
from .read import METRICS, SAMPLES


class LineFiles:
    """Appends lines to the files, and knows their sizes and hashes.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._hashes: dict[str, Any] = {}

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one line for each row to the file of that name."""
        lines = [json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        text = "".join(lines).encode("utf-8", "backslashreplace")
        path, digest = path_inside(self.run, name), self._hash(name)
        with naming(path), open(path, "ab", opener=never_a_link) as out:
            out.write(text)
        digest.update(text)

    def sizes(self) -> dict[str, int]:
        """Name of each file that exists, and its size in bytes."""
        paths = {name: self.run / name for name in (METRICS, SAMPLES)}
        return {name: path.stat().st_size for name, path in paths.items() if path.is_file()}

    def hashes(self) -> dict[str, str]:
        """Name of each file that exists, and its sha256."""
        return {name: self._hash(name).hexdigest() for name in self.sizes()}

    def _hash(self, name: str) -> Any:
        """The running hash of a file: what is there already is read once, and each new line updates it."""
        if name not in self._hashes:
            path = self.run / name
            self._hashes[name] = hashlib.sha256(path.read_bytes() if path.is_file() else b"")
        return self._hashes[name]

    def sync(self) -> None:
        """Write the lines through to the disk."""
        for name in self.sizes():
            with (self.run / name).open("rb") as file:
                os.fsync(file.fileno())

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Cut each file down to its size in bytes; a file without a size is emptied."""
        for name in (METRICS, SAMPLES):
            path, size = path_inside(self.run, name), sizes.get(name, 0)
            if path.is_file() and path.stat().st_size > size:
                os.truncate(path, size)
            self._hashes.pop(name, None)
