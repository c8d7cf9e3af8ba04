"""Checks single values of a row, independent of the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .rows import BadRow

LARGEST = 3.4e38
"""The largest number that 32-bit floats can hold."""

LABELS = {word: True for word in ("true", "1", "1.0", "yes")} | {
    word: False for word in ("false", "0", "0.0", "no")
}


def required(value: Any, name: str) -> Any:
    """The value; raises BadRow if it is missing, an empty list or blank text.

    Args:
        value: value of a column.
        name: name of the column.
    """
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise BadRow(f"{name} is empty", f"with an empty {name}")
    return value


def label_of(value: Any) -> bool:
    """True for a desirable answer, False for an undesirable one; raises BadRow for anything else."""
    if isinstance(value, bool):
        return value
    label = LABELS.get(str(value).strip().lower())
    if label is None:
        raise BadRow(f"label is {value!r}, expected true or false", "with a label that is not true or false")
    return label


def probability_of(row: Mapping[str, Any]) -> float:
    """The column `chosen_prob` of a row; raises BadRow unless it is a number from 0 to 1."""
    value = number_of(row, "chosen_prob")
    if not 0 <= value <= 1:
        raise BadRow(
            f"the probability of the chosen answer is {value:g}, expected 0 to 1", "with a wrong chosen_prob"
        )
    return value


def number_of(row: Mapping[str, Any], name: str) -> float:
    """A number of a row; raises BadRow unless it is finite."""
    value = row[name]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LARGEST:
        raise BadRow(f"{name} is {value!r}, expected a number", f"with a wrong {name}")
    return number
