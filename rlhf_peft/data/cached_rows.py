"""Reads the rows of a file through the cache.

A file is parsed once. Its rows are written to the cache as Arrow, and mapped into memory from there at every later
start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow

from ..errors import DataError
from . import cache
from .progress import with_progress
from .rows import ROW, BadRows
from .table import ROW_LEFT_OUT, Kinds, Numbered, as_table, checked, table_errors

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = 1
"""Version of the code that reads files. Increase it whenever the same file may give other rows or other notes."""

Read = Callable[[], Numbered]
"""Reads the rows of a file from its beginning."""


def read_through_cache(path: Path, source: str, bad: BadRows, read: Read) -> Dataset:
    """Return the rows of a file as a dataset with the column `ROW`.

    Args:
        path: path of the file.
        source: name of the file in messages.
        bad: collects the rows that cannot be used; its `finish` is called here.
        read: reads the file and records problems in `bad`; it may be called several times.

    Raises:
        DataError: the file cannot be read, or rows are bad.
    """
    try:
        before = _stamp(path)
        key = cache.key_of("rows", VERSION, path.suffix.lower(), lambda: _digest(path))
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror or error}).") from error

    def write(open_sink: cache.OpenSink) -> cache.Notes:
        bad.reset()
        kinds = _write_rows(open_sink, read, bad, {})
        if kinds is not None:  # later rows hold other kinds of values than the first ones did
            bad.reset()
            _write_rows(open_sink, read, bad, kinds)
        return bad.plain()

    rows, notes = cache.load_or_make("rows", key, write, source, unchanged=lambda: _stamp(path) == before)
    cache.release()
    bad.take(notes)
    bad.finish(len(rows) + len(bad.rows))
    rows.info.description = bad.description
    return rows


def _write_rows(
    open_sink: cache.OpenSink, read: Read, bad: BadRows, known: Mapping[str, Kinds]
) -> dict[str, Kinds] | None:
    """Write all rows as an Arrow stream.

    Args:
        open_sink: opens the stream to write to.
        read: reads the rows.
        bad: collects the rows that cannot be used.
        known: the kinds of all columns. If it is empty, the kinds of the first rows are used.

    Returns:
        None if all rows were written. If later rows hold other kinds of values than the first ones, writing
            stops and the
        kinds of all columns are returned, for a second pass.
    """
    kinds = dict(known)
    features, writer = None, None
    rows = iter(with_progress(checked(read(), bad), f"{bad.source}: reading rows"))
    with open_sink() as sink:
        while (batch := list(islice(rows, cache.BATCH))) or features is None:
            columns = _columns(batch, kinds, bad)
            current = {name: kind.feature for name, kind in kinds.items()}
            if features is None:
                with table_errors(bad.source):
                    features, writer = current, _stream(sink, current)
            if current != features and writer is not None:
                writer.close()
                writer = None
            if writer is not None:
                with table_errors(bad.source):
                    table = as_table(columns, [number for number, _ in batch], features)
                writer.write_table(table)
        if writer is not None:
            writer.close()
    return None if writer is not None else kinds


def _stream(sink: Any, features: Mapping[str, Any]) -> Any:
    """Open an Arrow stream for tables with these columns."""
    return pyarrow.ipc.new_stream(sink, as_table({name: [] for name in features}, [], features).schema)


def _columns(
    batch: list[tuple[int, dict[str, Any]]], kinds: dict[str, Kinds], bad: BadRows
) -> dict[str, Any]:
    """Turn rows into columns, and record the kinds of their values in `kinds`."""
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
    """Size and modification time of a file; they change when the file is written to."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _digest(path: Path) -> str:
    """SHA-256 of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
