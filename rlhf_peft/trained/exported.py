"""What an export says of itself, in `export.json`: what it was made from, and which files are its own.

By it a later export may take the place of an earlier one, and of nothing else.
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
        **facts: what it was made from, as JSON.
    """
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    record = {"rlhf_peft": __version__, **facts, "files": [*names, FILE]}
    (folder / FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that is not an earlier export, or that holds files of somebody else.

    Raises:
        UsageError: names what is there.
    """
    advice = "Choose another folder with --output, or remove it yourself."
    if folder.is_symlink():
        raise UsageError(f"{folder}: --overwrite replaces folders, and this is a link. {advice}")
    try:
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
        own = {str(name) for name in record["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder}: --overwrite replaces an earlier export only, and there is no {FILE} here that says so. {advice}"
        ) from error
    there = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
    others = sorted(set(there) - own)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UsageError(
            f"{folder}: --overwrite replaces an earlier export only, and {others[0]}{more} is not of it. {advice}"
        )
