"""Pairs from a file, and preferences into one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data import columns_of, load_rows
from ..errors import DataError
from .store import Pair

NAMES = (("chosen", "rejected"), ("a", "b"), ("completion_a", "completion_b"), ("response_a", "response_b"))


def from_file(path: str, split: str = "train") -> list[Pair]:
    """Pairs of a dataset: `prompt` and two completions, under one of several names.

    Raises:
        DataError: it has no such columns, or cannot be read.
    """
    rows = load_rows(path=path, split=split)
    found = columns_of(rows)
    names = next((pair for pair in NAMES if set(pair) <= set(found)), None)
    if names is None or "prompt" not in found:
        wanted = " or ".join("+".join(("prompt", *pair)) for pair in NAMES)
        raise DataError(f"{path}: found columns {', '.join(found)}. Pairs to label need {wanted}.")
    return [Pair(row["prompt"], _text(row[names[0]]), _text(row[names[1]]), *names) for row in rows]


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
