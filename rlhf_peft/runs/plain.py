"""Python values as JSON: tensors, NumPy arrays and numbers that are not finite become values that JSON has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Any value as JSON has it: tensors become numbers and lists, paths become text, NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def plain_number(value: Any) -> float | int | None:
    """A metric's value as JSON has it; None where it is not finite.

    Args:
        value: a number, or anything with `item()`, such as a tensor or a NumPy value.

    Raises:
        TypeError: it is no number.
    """
    number = value.item() if hasattr(value, "item") else value
    if number is None:
        return None
    if not isinstance(number, (int, float)):
        raise TypeError(f"a metric must be a number, found {type(value).__name__}")
    if isinstance(number, bool):
        return int(number)
    return number if math.isfinite(number) else None
