"""Readers of single files: jsonl, json, csv, tsv, txt, parquet.

Unlike a general loader, they number the rows, and errors name file and row. A reader yields `(number, row)`; a row
that cannot be read goes to `bad`, which decides whether it ends the run. Compressed files are left out on purpose;
use parquet.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .cached_rows import read_through_cache
from .json_shapes import rows_in
from .json_text import loads
from .rows import BadRow, BadRows
from .table import table_dataset

if TYPE_CHECKING:
    from datasets import Dataset

Row = tuple[int, dict[str, Any]]

SEPARATORS = {",": '","', ";": '";"', "\t": "tab"}
BOM = b"\xef\xbb\xbf"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")


def read_file(path: Path, source: str, bad: BadRows) -> Dataset:
    """Read one file as a dataset with row numbers.

    Args:
        path: an existing file.
        source: name of the file in messages.
        bad: collects rows that cannot be read.

    Raises:
        DataError: unknown suffix, wrong encoding, malformed content.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return read_parquet(path, source)
    if suffix not in READERS:
        raise DataError(
            f"{source}: a file ending in {suffix or 'nothing'} is not known. Expected one of "
            f"{', '.join(SUFFIXES)}."
        )
    return read_through_cache(path, source, bad, lambda: READERS[suffix](path, source, bad))


def read_parquet(path: Path, source: str) -> Dataset:
    """Read a parquet file; the caller adds the row numbers."""
    import pyarrow
    import pyarrow.parquet

    try:
        return table_dataset(pyarrow.parquet.read_table(path), source)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{source}: not a parquet file that can be read ({brief(error)}). Write it again, or give "
            "jsonl, json or csv."
        ) from error


def json_lines(path: Path, source: str, bad: BadRows) -> Iterator[Row]:
    """Read one JSON object per line; the number of a row is its line."""
    for number, line in lines_of(path, source):
        with bad.row(number):
            value = parse_json(utf8(line))
            if value is not None:
                yield number, expect_object(value)


def lines_of(path: Path, source: str) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers, without the byte order mark of UTF-8.

    Raises:
        DataError: the file is UTF-16.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                refuse_utf16(line, source)
                line = line.removeprefix(BOM)
            yield number, line.removesuffix(b"\n")


def json_file(path: Path, source: str, bad: BadRows) -> Iterator[Row]:
    """Read a `.json` file: an array of objects, one object per line, or a table in another layout."""
    data = path.read_bytes()
    refuse_utf16(data, source)
    data = data.removeprefix(BOM)
    lines = data.strip().split(b"\n", 2)[:2]
    if len(lines) > 1 and all(
        line.strip().startswith(b"{") and line.strip().endswith(b"}") for line in lines
    ):
        del data
        yield from json_lines(path, source, bad)
        return
    try:
        text = utf8(data)
    except BadRow as problem:
        raise DataError(f"{source}: {problem}. {problem.remedy}.") from problem
    rows, shape = rows_in(text, source)
    if shape:
        bad.remark(f"read as {shape}: {len(rows)} rows")
    for number, value in enumerate(rows, start=1):
        with bad.row(number):
            yield number, expect_object(value)


def parse_json(text: str) -> Any:
    """Parse a line; None for a blank line. Raises BadRow if it is not JSON."""
    if not text.strip():
        return None
    try:
        return loads(text)
    except json.JSONDecodeError as error:
        position = (
            f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        )
        raise BadRow(f"malformed JSON at {position}: {error.msg}", "not JSON") from error
    except (ValueError, RecursionError) as error:
        raise BadRow(f"malformed JSON: {brief(error)}", "not JSON") from error


def expect_object(value: Any) -> dict[str, Any]:
    """The JSON object itself; raises BadRow if it is something else."""
    if not isinstance(value, dict):
        raise BadRow(
            f'expected a JSON object such as {{"prompt": ...}}, found {type(value).__name__}', "no object"
        )
    return value


def utf8(data: bytes) -> str:
    """Decode UTF-8; raises BadRow for other bytes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(
            f"not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start + 1})",
            "not UTF-8",
            "Save the file as UTF-8",
        ) from error


def refuse_utf16(data: bytes, source: str) -> None:
    """Raise DataError for a UTF-16 file, which would otherwise look like many broken lines."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{source}: the file is UTF-16. Save it as UTF-8.")


def decode_table(data: bytes, source: str, bad: BadRows) -> str:
    """Decode a table: UTF-8 with or without a byte order mark, UTF-16 with one, else Windows-1252."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise DataError(f"{source}: marked as UTF-16, but it is not. Save it as UTF-8.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError as again:
            raise DataError(
                f"{source}, line {line:,}: neither UTF-8 nor Windows-1252 "
                f"(byte 0x{data[again.start]:02x}). Save the file as UTF-8."
            ) from error
        bad.remark("not UTF-8; read as Windows-1252", line)
        return text


def sniff_separator(text: str) -> str:
    """The separator that gives the first records the most columns, alike in most of them; `,` if none does."""
    best, most = ",", 1
    for separator in SEPARATORS:
        widths = []
        try:
            for record, _ in zip(
                csv.reader(io.StringIO(text[:65536]), delimiter=separator), range(20), strict=False
            ):
                widths.append(len(record))
        except csv.Error:
            continue
        widths = [width for width in widths if width] or [0]
        alike = sum(width == widths[0] for width in widths) * 2 > len(widths)
        if alike and widths[0] > most:
            best, most = separator, widths[0]
    return best


def csv_rows(path: Path, source: str, bad: BadRows) -> Iterator[Row]:
    """Read the records of a csv or tsv file; every value is text, and an empty field is empty text."""
    text = decode_table(path.read_bytes(), source, bad)
    separator = "\t" if path.suffix.lower() == ".tsv" else sniff_separator(text)
    bad.description = f"separator {SEPARATORS[separator]}"
    yield from csv_records(text, separator, source, bad)


def csv_records(text: str, separator: str, source: str, bad: BadRows) -> Iterator[Row]:
    """Yield the records of a text that begins with a header."""
    limit = csv.field_size_limit(sys.maxsize >> 32)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        header = csv_header(next((record for record in reader if record), []), source)
        number = 0
        for record in reader:
            if not record:
                continue
            number += 1
            with bad.row(number):
                if len(record) != len(header):
                    raise BadRow(
                        f"{len(record)} fields (line {reader.line_num:,}), but the header has {len(header)}",
                        "with a wrong number of fields",
                    )
                yield number, dict(zip(header, record, strict=True))
    except csv.Error as error:
        why = str(error).replace("unexpected end of data", "a quote is opened and never closed")
        raise DataError(
            f"{source}, line {reader.line_num:,}: malformed csv: {why}. A field that holds a quote, a line "
            f"break or the separator stands in quotes, and quotes inside it are doubled."
        ) from error
    finally:
        csv.field_size_limit(limit)


def csv_header(record: list[str], source: str) -> list[str]:
    """The column names; a column without a name (an index, for example) gets one."""
    names = [name.strip() or f"column_{number}" for number, name in enumerate(record, start=1)]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise DataError(f"{source}: the header names {', '.join(duplicates)} twice. Rename one of them.")
    return names


def text_lines(path: Path, source: str, bad: BadRows) -> Iterator[Row]:
    """Yield every line that is not blank, as column `text`."""
    for number, line in lines_of(path, source):
        with bad.row(number):
            text = utf8(line).strip("\r")
            if text.strip():
                yield number, {"text": text}


READERS: dict[str, Callable[[Path, str, BadRows], Iterator[Row]]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_file,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".txt": text_lines,
}
"""The reader for each suffix of a file name."""


def brief(error: BaseException) -> str:
    """An error's message, in one short line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
