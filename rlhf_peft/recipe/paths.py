"""Makes the paths of a recipe absolute.

In a file they are relative to the file's folder, on the command line to the current folder. `output_dir` is not
changed: it is always relative to the current folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .places import value_at
from .source import Loc

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".zst", ".arrow")

Rule = Callable[[str, Path], bool]


def resolve_paths(data: dict[str, Any], folder: Path | None, override_locs: Sequence[Loc]) -> list[Loc]:
    """Make every value that names a file or folder absolute, in place.

    Args:
        data: the recipe's mapping.
        folder: folder of the recipe's file; None for a recipe without a file.
        override_locs: locations that were set on the command line.

    Returns:
        The locations that were changed.
    """
    current = Path.cwd()
    changed: list[Loc] = []
    for loc, is_path in list(_slots(data)):
        value = value_at(data, loc)
        if not isinstance(value, str) or not _may_be_path(value):
            continue
        overridden = any(loc[: len(written_loc)] == written_loc for written_loc in override_locs)
        base = current if overridden or folder is None else folder
        if not is_path(value, base):
            if "init" not in loc or not _exists(value, current):
                continue
            base = current
        value_at(data, loc[:-1])[loc[-1]] = _absolute(value, base)
        changed.append(loc)
    return changed


def _slots(data: dict[str, Any]) -> Iterator[tuple[Loc, Rule]]:
    """Yield the locations that may hold a path, each with the rule that decides whether its value is one."""
    yield ("model", "path"), _is_folder
    stages = data.get("stages")
    for index, stage in enumerate(stages if isinstance(stages, list) else []):
        loc: Loc = ("stages", index)
        yield (*loc, "dataset", "path"), _is_data
        yield (*loc, "eval", "dataset", "path"), _is_data
        yield (*loc, "eval", "prompts"), lambda value, base: True
        init = stage.get("init") if isinstance(stage, dict) else None
        for role in init if isinstance(init, dict) else ():
            yield (*loc, "init", role), _is_folder


def _may_be_path(value: str) -> bool:
    return bool(value) and not value.startswith("builtin:") and "://" not in value and "\0" not in value


def _is_data(value: str, base: Path) -> bool:
    return _looks_local(value) or value.lower().endswith(DATA_SUFFIXES) or _exists(value, base)


def _is_folder(value: str, base: Path) -> bool:
    return _looks_local(value) or _exists(value, base)


def _looks_local(value: str) -> bool:
    return value in (".", "..") or value.startswith(("./", "../", "~/", ".\\", "..\\"))


def _exists(value: str, base: Path) -> bool:
    try:
        return (base / Path(value).expanduser()).exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _absolute(value: str, base: Path) -> str:
    try:
        return os.path.abspath(base / Path(value).expanduser())
    except RuntimeError:
        return os.path.abspath(base / value)
