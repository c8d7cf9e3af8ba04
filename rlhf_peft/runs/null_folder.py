"""The run folder of processes that must not write: in a run with several processes only the main one writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .folder import RunFolder


class NullFolder(RunFolder):
    """A run folder that accepts all calls and writes nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, {})

    @property
    def is_made(self) -> bool:
        """False: this process never makes the folder."""
        return False

    def make(self) -> None:
        """Do nothing."""

    def write_recipe(self, text: str) -> None:
        """Do nothing."""

    def _append(self, file: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Do nothing."""

    def adapter_dir(self, role: str) -> Path:
        """The folder into which the main process writes the adapter."""
        return self.path / "adapters" / role

    def wrote_adapter(self, role: str) -> None:
        """Do nothing."""

    def copy_code(self, path: str | Path) -> Path:
        """Do nothing."""
        return Path(path)

    def update_manifest(self, **entries: Any) -> None:
        """Do nothing."""
