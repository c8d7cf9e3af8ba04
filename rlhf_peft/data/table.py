"""Rows of Python values into a `datasets.Dataset` that gives back exactly what they held.

Lists and objects are kept as JSON (`datasets.Json`), not as Arrow structs: no key is added, a value may be of another
type than in the row before. So is a column whose plain values are of several types. A column missing from a row is
filled with None.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .json_text import TOO_DEEP, is_deep
from .rows import ROW, BadRow, BadRows

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("rlhf_peft")


def make_dataset(
    rows: Iterable[tuple[int, dict[str, Any]]], source: str, bad: BadRows, note: str = ""
) -> Dataset:
    """The rows as a dataset with the column `ROW`.

    Args:
        rows: number and values of each row.
        source: what messages call the dataset.
        bad: takes rows that cannot be used; finished here.
        note: kept with the dataset for messages (`separator ";"`).

    Raises:
        DataError: rows are bad, or hold values that JSON cannot.
    """
    import datasets

    kept = []
    for number, row in rows:
        with bad.row(number):
            if is_deep(row):
                raise BadRow(TOO_DEEP, "nested too deeply")
            check_text(row)
            kept.append((number, row))
    bad.finish(len(kept) + len(bad.found))
    names = list(dict.fromkeys(name for _, row in kept for name in row if name != ROW))
    columns = {name: [row.get(name) for _, row in kept] for name in names}
    if any(ROW in row for _, row in kept):
        log.warning("%s: the column %s is left out; its name is used for the numbers of rows", source, ROW)
    try:
        features = {name: feature(values) for name, values in columns.items()}
        dataset = datasets.Dataset.from_dict(
            {**columns, ROW: [number for number, _ in kept]},
            features=datasets.Features({**features, ROW: datasets.Value("int64")}),
        )
    except (RecursionError, ValueError, TypeError, OverflowError, pyarrow_error()) as error:
        raise DataError(
            f"{source}: the values are nested too deeply, or of a type that no table holds."
        ) from error
    dataset.info.description = note
    return dataset


def feature(values: list[Any]) -> Any:
    """How a column is kept: plain values of one type as they are, all else as JSON."""
    import datasets

    kinds = {type(value) for value in values if value is not None}
    plain = {str: "string", bool: "bool", int: "int64", float: "float64"}
    if kinds == {int, float}:
        kinds = {float} if all(abs(value) < 2**53 for value in values if value is not None) else {object}
    if kinds == {int} and any(abs(value) >= 2**63 for value in values if value is not None):
        kinds = {object}
    kind = kinds.pop() if len(kinds) == 1 else str if not kinds else object
    if kind in plain:
        return datasets.Value(plain[kind])
    try:
        json.dumps(values)
    except (TypeError, ValueError):  # dates and the like, of a registered dataset
        return datasets.Dataset.from_dict({"column": values}).features["column"]
    return datasets.Json()


def check_text(value: Any) -> None:
    """BadRow where a text holds half of a surrogate pair, which no tokenizer reads; so inside of lists and objects."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRow(
                f"it holds half of a surrogate pair (\\u{ord(value[error.start]):04x}), which is no letter",
                "with half of a surrogate pair",
                "Write the whole letter, or remove it",
            ) from error
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_text(key)
            check_text(item)
    elif isinstance(value, list):
        for item in value:
            check_text(item)


def pyarrow_error() -> type[Exception]:
    """What Arrow raises."""
    import pyarrow

    error: type[Exception] = pyarrow.ArrowException
    return error


def table_dataset(table: Any, source: str) -> Dataset:
    """An Arrow table as a dataset; columns of a kind that `datasets` does not know are kept as JSON, or left out."""
    import datasets

    made = {}
    for name in table.column_names:
        try:
            made[name] = datasets.Dataset(table.select([name]))
        except (ValueError, TypeError, KeyError, pyarrow_error()):
            try:
                values = table[name].to_pylist(maps_as_pydicts="lossy")
                json.dumps(values)
            except (TypeError, ValueError, pyarrow_error()):
                log.warning(
                    "%s: column %s holds a kind of values that cannot be read; it is left out", source, name
                )
                continue
            made[name] = datasets.Dataset.from_dict(
                {name: values}, features=datasets.Features({name: datasets.Json()})
            )
    return datasets.concatenate_datasets(list(made.values()), axis=1)
