"""`export.json`, the record of an export: what it was made from, and which files belong to it.

A later export may replace a folder only if this record lists all its files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UsageError

FILE = "export.json"


def write_record(folder: Path, **facts: Any) -> None:
    """Write `export.json`, the last file of an export.

    Args:
        folder: of the export, with every other file in it.
        **facts: entries that say what it was made from, as JSON.
    """
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    record = {"rlhf_peft": __version__, **facts, "files": [*names, FILE]}
    (folder / FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that is not an earlier export, or that holds other files.

    Raises:
        UsageError: the folder may not be replaced; the message names the reason.
    """
    advice = "Choose another folder with --output, or remove it yourself."
    if folder.is_symlink():
        raise UsageError(f"{folder}: --overwrite replaces folders, and this is a link. {advice}")
    try:
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
        recorded = {str(name) for name in record["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder}: --overwrite replaces an earlier export only, and there is no {FILE} here that says so. {advice}"
        ) from error
    present = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
    others = sorted(set(present) - recorded)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UsageError(
            f"{folder}: --overwrite replaces an earlier export only, and {others[0]}{more} is not of it. {advice}"
        )
