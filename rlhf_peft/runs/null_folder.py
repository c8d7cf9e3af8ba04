"""A run folder that another process writes: this one keeps its hands off it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .folder import RunFolder


class Elsewhere(RunFolder):
    """Takes everything that a run folder takes, and writes nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, {})

    @property
    def made(self) -> bool:
        """Never by this process."""
        return False

    def make(self) -> None:
        """Nothing."""

    def write_recipe(self, text: str) -> None:
        """Nothing."""

    def _append(self, file: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Nothing."""

    def adapter_dir(self, role: str) -> Path:
        """Where the other process writes it."""
        return self.path / "adapters" / role

    def wrote_adapter(self, role: str) -> None:
        """Nothing."""

    def copy_code(self, path: str | Path) -> Path:
        """Nothing."""
        return Path(path)

    def update_manifest(self, **entries: Any) -> None:
        """Nothing."""
