"""Rows of Python values into a `datasets.Dataset`, tolerant where that is harmless and exact where it is not.

A column missing from a row is filled with None. Values of one column must share a type: in a column that a
stage reads, a row that differs is a bad row; any other column is kept as JSON text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .rows import ROW, BadRow, BadRows

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("rlhf_peft")

KNOWN = {"prompt", "completion", "chosen", "rejected", "label", "text", "messages", "conversations"}
"""Columns that stages read."""


def make_dataset(
    rows: Iterable[tuple[int, dict[str, Any]]], source: str, bad: BadRows, essential: set[str], note: str = ""
) -> Dataset:
    """The rows as a dataset with the column `ROW`.

    Args:
        rows: number and values of each row.
        source: what messages call the dataset.
        bad: takes rows that cannot be used; finished here.
        essential: columns whose values must be of one type.
        note: kept with the dataset for messages (`separator ";"`).
    """
    import datasets
    import pyarrow

    kept = [(number, {clean(name): value for name, value in row.items()}) for number, row in rows]
    total = len(kept) + len(bad.found)
    names = list(dict.fromkeys(name for _, row in kept for name in row if name != ROW))
    wrong: dict[int, BadRow] = {}
    arrays: dict[str, Any] = {}
    for name in names:
        values = [row.get(name) for _, row in kept]
        arrays[name] = column(values, name, source, name in essential, wrong)
    if wrong:
        bad.found += [(kept[place][0], problem) for place, problem in wrong.items()]
        bad.found.sort(key=lambda item: item[0])
    bad.finish(total)
    good = [place for place in range(len(kept)) if place not in wrong]
    arrays[ROW] = pyarrow.array([number for number, _ in kept], pyarrow.int64())
    table = pyarrow.table({name: array.take(good) if wrong else array for name, array in arrays.items()})
    try:
        dataset = datasets.Dataset(table)
    except (RecursionError, ValueError, TypeError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{source}: the values are nested too deeply, or of a type that no table holds."
        ) from error
    dataset.info.description = note
    return dataset


def column(values: list[Any], name: str, source: str, essential: bool, wrong: dict[int, BadRow]) -> Any:
    """An Arrow array; rows of another type than the first go to `wrong` and are None, or all become text."""
    try:
        return arrow(values)
    except DataError:
        pass
    if not essential:
        log.warning("%s: column %s holds values of several types; it is kept as JSON text", source, name)
        texts = [value if isinstance(value, str) or value is None else json.dumps(value) for value in values]
        return arrow([None if text is None else clean(text) for text in texts])
    first: list[Any] = []
    good: list[Any] = []
    for place, value in enumerate(values):
        try:
            arrow([*first, value])
        except DataError as problem:
            wrong[place] = BadRow(f"{name}: {problem}", f"with {name} of another type")
            good.append(None)
            continue
        good.append(value)
        if not first and value:
            first = [value]
    try:
        return arrow(good)
    except DataError as error:
        raise DataError(
            f"{source}: column {name} holds values of several types that do not go together."
        ) from error


def clean(text: str) -> str:
    """Text that can be written: half of a surrogate pair becomes `?`."""
    return text.encode("utf-8", "replace").decode()


def arrow(values: list[Any]) -> Any:
    """An Arrow array, or DataError with what does not fit."""
    import pyarrow

    try:
        return pyarrow.array(values)
    except UnicodeError as error:
        raise DataError("text with half of a surrogate pair, which no file can hold") from error
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, RecursionError) as error:
        kinds = " and ".join(dict.fromkeys(kind(value) for value in values if value is not None))
        raise DataError(f"the type differs from the rows before it ({kinds})") from error


def kind(value: Any) -> str:
    """What a value is, in a word or two."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "messages" if value and all(isinstance(item, dict) for item in value) else "a list"
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, int | float) else "an object"
