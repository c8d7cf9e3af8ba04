"""The rows of a file in the cache: a file is read once, and mapped into memory from then on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow

from ..errors import DataError
from . import cache
from .progress import shown
from .rows import ROW, BadRows
from .table import ROW_LEFT_OUT, Kinds, Numbered, as_table, checked, table_errors

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = 1
"""Of the code that reads files: one more whenever a file may be read to other rows, or noted in other words."""

Read = Callable[[], Numbered]
"""Reads the rows of a file from its beginning."""


def keep_rows(path: Path, source: str, bad: BadRows, read: Read) -> Dataset:
    """The rows of a file as a dataset with the column `ROW`.

    Args:
        path: of the file.
        source: what messages call it.
        bad: takes rows that cannot be used; finished here.
        read: reads the file, and notes in `bad` what is wrong with it; it may be called several times.

    Raises:
        DataError: the file cannot be read, or rows are bad.
    """
    try:
        before = _stamp(path)
        key = cache.key_of("rows", VERSION, path.suffix.lower(), lambda: _digest(path))
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror or error}).") from error

    def write(open_sink: cache.OpenSink) -> cache.Noted:
        bad.reset()
        kinds = _written(open_sink, read, bad, {})
        if kinds is not None:  # later rows hold other kinds of values than the first ones did
            bad.reset()
            _written(open_sink, read, bad, kinds)
        return bad.plain()

    rows, noted = cache.kept("rows", key, write, source, still=lambda: _stamp(path) == before)
    cache.release()
    bad.take(noted)
    bad.finish(len(rows) + len(bad.found))
    rows.info.description = bad.description
    return rows


def _written(
    open_sink: cache.OpenSink, read: Read, bad: BadRows, known: Mapping[str, Kinds]
) -> dict[str, Kinds] | None:
    """Write all rows; None, or the kinds of all columns where the first rows did not show them.

    Args:
        open_sink: opens what is written to.
        read: reads the rows.
        bad: takes those that cannot be used.
        known: the kinds of all columns; empty: those of the first rows are taken.
    """
    kinds = dict(known)
    features, writer = None, None
    rows = iter(shown(checked(read(), bad), f"{bad.source}: reading rows"))
    with open_sink() as sink:
        while (batch := list(islice(rows, cache.BATCH))) or features is None:
            columns = _columns(batch, kinds, bad)
            seen = {name: kind.feature for name, kind in kinds.items()}
            if features is None:
                with table_errors(bad.source):
                    features, writer = seen, _stream(sink, seen)
            if seen != features and writer is not None:
                writer.close()
                writer = None
            if writer is not None:
                with table_errors(bad.source):
                    made = as_table(columns, [number for number, _ in batch], features)
                writer.write_table(made)
        if writer is not None:
            writer.close()
    return None if writer is not None else kinds


def _stream(sink: Any, features: Mapping[str, Any]) -> Any:
    """Writes Arrow tables of these columns."""
    return pyarrow.ipc.new_stream(sink, as_table({name: [] for name in features}, [], features).schema)


def _columns(
    batch: list[tuple[int, dict[str, Any]]], kinds: dict[str, Kinds], bad: BadRows
) -> dict[str, Any]:
    """Rows as columns, whose kinds are seen."""
    for _, row in batch:
        for name in row:
            if name not in kinds:
                kinds[name] = Kinds()
    if kinds.pop(ROW, None) is not None:
        bad.remark(ROW_LEFT_OUT)
    columns = {name: [row.get(name) for _, row in batch] for name in kinds}
    for name, values in columns.items():
        kinds[name].see(values)
    return columns


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written to."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
