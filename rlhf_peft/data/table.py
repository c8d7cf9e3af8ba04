"""Makes a `datasets.Dataset` from rows of Python values that gives back exactly these values.

Lists and objects are stored as JSON (`datasets.Json`), not as Arrow structs: so no key is added, and a value may
have another type than in the row before. A column whose plain values have several types is stored as JSON too. A
column that is missing from a row is filled with None.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow

from ..errors import DataError
from .json_text import TOO_DEEP, is_deep
from .rows import ROW, BadRow, BadRows

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("rlhf_peft")

ROW_LEFT_OUT = f"the column {ROW} is left out; its name is used for the numbers of rows"


Numbered = Iterable[tuple[int, dict[str, Any]]]


def make_dataset(rows: Numbered, source: str, bad: BadRows, note: str = "") -> Dataset:
    """Make a dataset in memory, with the column `ROW`.

    Args:
        rows: number and values of each row.
        source: name of the dataset in messages.
        bad: collects rows that cannot be used; its `finish` is called here.
        note: description stored with the dataset, for messages (`separator ";"`).

    Raises:
        DataError: rows are bad, or hold values that JSON cannot represent.
    """
    import datasets

    usable = list(checked(rows, bad))
    bad.finish(len(usable) + len(bad.rows))
    names = list(dict.fromkeys(name for _, row in usable for name in row if name != ROW))
    columns = {name: [row.get(name) for _, row in usable] for name in names}
    if any(ROW in row for _, row in usable):
        bad.remark(ROW_LEFT_OUT)
    with table_errors(source):
        features = {name: feature(values) for name, values in columns.items()}
        dataset = datasets.Dataset(as_table(columns, [number for number, _ in usable], features))
    dataset.info.description = note
    return dataset


def checked(rows: Numbered, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows that a table can hold; record the others in `bad`."""
    for number, row in rows:
        try:
            if is_deep(row):
                raise BadRow(TOO_DEEP, "nested too deeply")
            check_text(row)
        except BadRow as problem:
            bad.add(number, problem)
        else:
            yield number, row


def as_table(columns: Mapping[str, list[Any]], numbers: list[int], features: Mapping[str, Any]) -> Any:
    """Columns of Python values, and the numbers of their rows, as an Arrow table that `datasets` reads.

    Args:
        columns: values by column.
        numbers: numbers of the rows.
        features: the feature (type) of each column.
    """
    import datasets

    all_features = datasets.Features({**features, ROW: datasets.Value("int64")})
    arrays = [array(values, features[name]) for name, values in columns.items()]
    schema = all_features.arrow_schema
    return pyarrow.Table.from_arrays([*arrays, pyarrow.array(numbers, pyarrow.int64())], schema=schema)


def array(values: list[Any], feature: Any) -> Any:
    """A column of Python values as an Arrow array of this feature."""
    import datasets

    if isinstance(feature, datasets.Value):
        return pyarrow.array(values, feature.pa_type)
    features = datasets.Features({"column": feature})
    return datasets.Dataset.from_dict({"column": values}, features=features).data["column"]


@contextmanager
def table_errors(source: str) -> Iterator[None]:
    """Turn the errors of Arrow and `datasets` for values that a table cannot hold into DataError."""
    try:
        yield
    except (RecursionError, ValueError, TypeError, OverflowError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{source}: the values are nested too deeply, or of a type that no table holds."
        ) from error


def feature(values: list[Any]) -> Any:
    """The feature of a column: plain values of one type as they are, everything else as JSON."""
    import datasets

    kinds = Kinds()
    kinds.see(values)
    if kinds.is_plain:
        return kinds.feature
    try:
        json.dumps(values)
    except (TypeError, ValueError):  # dates and the like, of a registered dataset
        return datasets.Dataset.from_dict({"column": values}).features["column"]
    return kinds.feature


PLAIN: dict[type, str] = {str: "string", bool: "bool", int: "int64", float: "float64"}


class Kinds:
    """Records which kinds of values a column holds."""

    def __init__(self) -> None:
        self._types: set[type] = set()
        self._exact = {53: True, 63: True}

    def see(self, values: Iterable[Any]) -> None:
        """Take further values into account."""
        types = set(map(type, values))
        self._types |= types - {type(None)}
        if int in types or float in types:
            numbers = [value for value in values if type(value) in (int, float)]
            for bits in self._exact:
                self._exact[bits] &= all(abs(number) < 2**bits for number in numbers)

    @property
    def is_plain(self) -> bool:
        """Whether one of Arrow's plain types holds all values exactly."""
        if self._types == {int, float}:
            return self._exact[53]
        if self._types == {int}:
            return self._exact[63]
        return len(self._types) < 2 and self._types <= set(PLAIN)

    @property
    def feature(self) -> Any:
        """The feature of the column: plain values, or JSON."""
        import datasets

        if not self.is_plain:
            return datasets.Json()
        kind = float if float in self._types else next(iter(self._types), str)
        return datasets.Value(PLAIN[kind])


def check_text(value: Any) -> None:
    """Raise BadRow if a text, even inside lists and objects, holds half of a surrogate pair (no tokenizer reads it)."""
    if isinstance(value, str):
        if value.isascii():
            return
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


def table_dataset(table: Any, source: str) -> Dataset:
    """An Arrow table as a dataset; columns of types that `datasets` does not know become JSON, or are left out."""
    import datasets

    parts = {}
    for name in table.column_names:
        try:
            parts[name] = datasets.Dataset(table.select([name]))
        except (ValueError, TypeError, KeyError, pyarrow.ArrowException):
            try:
                values = table[name].to_pylist(maps_as_pydicts="lossy")
                json.dumps(values)
            except (TypeError, ValueError, pyarrow.ArrowException):
                log.warning(
                    "%s: column %s holds a kind of values that cannot be read; it is left out", source, name
                )
                continue
            parts[name] = datasets.Dataset.from_dict(
                {name: values}, features=datasets.Features({name: datasets.Json()})
            )
    return datasets.concatenate_datasets(list(parts.values()), axis=1)
