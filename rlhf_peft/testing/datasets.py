"""Checks that registered datasets keep the rules of the plugin interface."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from .rules import global_streams_untouched, make, require, same

COLUMNS = frozenset({"prompt", "completion", "chosen", "rejected", "messages", "text", "label"})


def check_dataset(factory: Any, options: Mapping[str, Any] | None = None, most: int = 100) -> None:
    """Check that a dataset keeps the rules: rows are mappings in one of TRL's formats, and the same each time.

    Args:
        factory: what is registered.
        options: as a recipe gives them.
        most: rows that are checked.

    Raises:
        ConformanceError: a rule is broken.
    """
    who = f"dataset {getattr(factory, '__name__', '')}".rstrip()
    dataset = make(factory, options)
    with global_streams_untouched(who):
        rows = list(islice(dataset.rows(), most))
    require(bool(rows), f"{who} has no rows.")
    for i, row in enumerate(rows):
        require(isinstance(row, Mapping), f"{who}: row {i} is a {type(row).__name__}, expected a mapping.")
        require(
            all(isinstance(key, str) for key in row), f"{who}: row {i} has a column whose name is no text."
        )
        listed = ", ".join(sorted(COLUMNS))
        require(
            bool(COLUMNS & row.keys()),
            f"{who}: row {i} has columns {sorted(row)}; a row of TRL's formats has some of {listed}.",
        )
        require(row.keys() == rows[0].keys(), f"{who}: row {i} has other columns than row 0.")
    require(
        same(_plain(rows), _plain(islice(dataset.rows(), most))),
        f"{who}: rows() gave other rows the second time.",
    )
    require(
        same(_plain(rows), _plain(islice(make(factory, options).rows(), most))),
        f"{who}: another one with the same options has other rows.",
    )


def _plain(rows: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in rows]
