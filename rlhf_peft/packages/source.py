"""Reads which modules the pyproject.toml of a plugin's source folder names as entry points."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..entry_points import PLUGINS
from ..errors import PluginError


def entry_modules(folder: Path) -> dict[str, str]:
    """The entry points of a folder's pyproject.toml: name to module.

    Raises:
        PluginError: there is no pyproject.toml, it cannot be read, or it has no entry point of plugins.
    """
    file = folder / "pyproject.toml"
    try:
        project: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PluginError(f"{file}: cannot be read: {error}") from None
    modules = project.get("project", {}).get("entry-points", {}).get(PLUGINS, {})
    if not modules:
        raise PluginError(
            f'{file}: has no entry point of group {PLUGINS}. Add [project.entry-points.{PLUGINS}] and name = "module".'
        )
    return {str(name): str(module) for name, module in modules.items()}


def import_path(folder: Path) -> Path:
    """The folder of a package's modules: `src` where it exists, or else the folder itself."""
    return folder / "src" if (folder / "src").is_dir() else folder
