"""What makes a single value bad, whatever the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .rows import BadRow

LARGEST = 3.4e38
"""Of a figure: the largest number of 32 bits."""

LABELS = {word: True for word in ("true", "1", "1.0", "yes")} | {
    word: False for word in ("false", "0", "0.0", "no")
}


def filled(value: Any, name: str) -> Any:
    """The value; BadRow if it is missing, an empty list or blank text.

    Args:
        value: of a column.
        name: of the column.
    """
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise BadRow(f"{name} is empty", f"with an empty {name}")
    return value


def label_of(value: Any) -> bool:
    """True for a desirable answer, False for an undesirable one; BadRow for anything else."""
    if isinstance(value, bool):
        return value
    known = LABELS.get(str(value).strip().lower())
    if known is None:
        raise BadRow(f"label is {value!r}, expected true or false", "with a label that is not true or false")
    return known


def probability_of(row: Mapping[str, Any]) -> float:
    """The column `chosen_prob` of a row; BadRow unless it is a number from 0 to 1."""
    value = figure_of(row, "chosen_prob")
    if not 0 <= value <= 1:
        raise BadRow(
            f"the probability of the chosen answer is {value:g}, expected 0 to 1", "with a wrong chosen_prob"
        )
    return value


def figure_of(row: Mapping[str, Any], name: str) -> float:
    """A number of a row; BadRow where it is not a finite number."""
    value = row[name]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LARGEST:
        raise BadRow(f"{name} is {value!r}, expected a number", f"with a wrong {name}")
    return number
