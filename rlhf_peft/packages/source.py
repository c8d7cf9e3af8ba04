"""A plugin's source folder: which modules its pyproject.toml offers."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..entry_points import PLUGINS
from ..errors import PluginError


def entry_modules(folder: Path) -> dict[str, str]:
    """Entry point name to module, from the folder's pyproject.toml.

    Raises:
        PluginError: there is no pyproject.toml, it cannot be read, or it offers nothing.
    """
    file = folder / "pyproject.toml"
    try:
        written: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PluginError(f"{file}: cannot be read: {error}") from None
    found = written.get("project", {}).get("entry-points", {}).get(PLUGINS, {})
    if not found:
        raise PluginError(
            f'{file}: has no entry point of group {PLUGINS}. Add [project.entry-points.{PLUGINS}] and name = "module".'
        )
    return {str(name): str(module) for name, module in found.items()}


def import_path(folder: Path) -> Path:
    """Where its modules are: `src` where there is one."""
    return folder / "src" if (folder / "src").is_dir() else folder
