"""The recipes that come with the package (beside it in a source tree, inside it in a wheel) and with plugins."""

from __future__ import annotations

from pathlib import Path

from .. import entry_points
from ..errors import UsageError
from .messages import did_you_mean
from .source import read_text

_PACKAGE = Path(__file__).resolve().parent.parent


def folder() -> Path:
    """The folder of the shipped recipes."""
    installed = _PACKAGE / "assets" / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def names() -> list[str]:
    """Names of the shipped recipes, then `distribution:name` for those of plugins."""
    return [*sorted(path.stem for path in folder().glob("*.yaml")), *sorted(_from_plugins())]


def _from_plugins() -> dict[str, Path]:
    """Recipes in the packages that the entry points of `rlhf_peft.recipes` name; no package is imported."""
    files: dict[str, Path] = {}
    for point in entry_points.points(entry_points.RECIPES):
        folder_path = None if point.disabled else point.folder()
        for file in sorted(folder_path.glob("*.yaml")) if folder_path else ():
            files.setdefault(f"{point.distribution}:{file.stem}", file)
    return files


def path(name: str) -> Path:
    """The file of a shipped recipe.

    Raises:
        UsageError: there is no such recipe; the message lists the existing ones.
    """
    shipped_file = folder() / f"{name}.yaml"
    plugin_files = _from_plugins() if ":" in name else {}
    all_names = names()
    if name in all_names:
        return plugin_files.get(name, shipped_file)
    local_file = Path(f"{name}.yaml")
    hint = f" The file here is ./{local_file}." if _is_file(local_file) else ""
    listed = ", ".join(all_names) or "none"
    raise UsageError(
        f"no shipped recipe is called {name!r}.{did_you_mean(name, all_names)}{hint} Shipped: {listed}. "
        "A path holds a / or ends in .yaml."
    )


def text(name: str) -> str:
    """The text of a shipped recipe."""
    return read_text(path(name))


def summary(name: str) -> str:
    """The first line of a shipped recipe's opening comment."""
    for line in text(name).splitlines():
        if line.startswith("#") and line.strip("# "):
            return line.strip("# ").strip()
    return ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
