"""Reads pairs from a file, and writes preferences to one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic import write_output
from ..data import columns_of, load_rows
from ..data.conversation import THOUGHTS
from ..data.examples import example
from ..data.formats import Format, conversational
from ..data.rows import BadRow, BadRows, numbered
from ..errors import DataError
from .store import Pair

NAMES = (("chosen", "rejected"), ("a", "b"), ("completion_a", "completion_b"), ("response_a", "response_b"))


def from_file(path: str, split: str = "train") -> list[Pair]:
    """Read pairs from a dataset.

    The two completions are in columns under one of several pairs of names. The prompt is in the column `prompt`, or
    is the beginning that both completions share. Rows that hold no pair are skipped, with a warning.

    Raises:
        DataError: the dataset has no such columns, holds no pair, or cannot be read.
    """
    rows = load_rows(path=path, split=split)
    file_columns = columns_of(rows)
    names = next((pair for pair in NAMES if set(pair) <= set(file_columns)), None)
    if names is None or ("prompt" not in file_columns and names != NAMES[0]):
        expected = " or ".join("+".join(("prompt", *pair)) for pair in NAMES)
        raise DataError(f"{path}: found columns {', '.join(file_columns)}. Pairs to label need {expected}.")
    rows = rows.rename_columns(
        {theirs: ours for theirs, ours in zip(names, NAMES[0], strict=True) if theirs != ours}
    )
    columns = ("prompt", *NAMES[0]) if "prompt" in file_columns else NAMES[0]
    format = Format("preference", columns, conversational(rows, columns))
    bad, pairs = BadRows(path, "skip", "label"), []
    for number, row in numbered(rows):
        with bad.row(number):
            parts = example(row, format)
            first, second = (_text(parts[ours], theirs) for ours, theirs in zip(NAMES[0], names, strict=True))
            pairs.append(Pair(parts["prompt"], first, second, *names, tools=parts.get("tools")))
    bad.finish(len(rows))
    return pairs


def _text(completion: Any, name: str) -> str:
    """The text of an answer; raises BadRow if it is more than one text, which the page cannot show."""
    if isinstance(completion, str):
        return completion
    only = completion[0]
    if len(completion) > 1 or any(only.get(key) for key in ("tool_calls", *THOUGHTS)):
        raise BadRow(
            f"{name} holds several turns, tool calls or thoughts beside its text; people compare one text with another",
            "whose answers are more than one text",
        )
    return str(only["content"])


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
