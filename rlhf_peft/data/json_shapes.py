"""Reads the different layouts in which a `.json` file can hold a table.

Rows as one object per line are read in `files.json_lines`; everything else (one array, several arrays, an object with
a table inside, a table stored by column) is read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ..errors import DataError
from .conversation import is_messages
from .json_text import reject_duplicate_keys

SPACE = " \t\r\n"


def rows_in(text: str, source: str) -> tuple[list[Any], str]:
    """Return the rows of a JSON text, and a note on its layout.

    These layouts are read: an array of objects; several arrays or objects one after the other; an object with one
    table inside (`{"data": [...]}`); a table by column (`{"prompt": [...], "completion": [...]}`), also as pandas
    writes it (`{"prompt": {"0": ...}}`, or `columns` beside `data`).

    Args:
        text: text of the whole file.
        source: name of the file in messages.

    Returns:
        The rows, and a description of the layout for a message. It is empty for an array of rows.

    Raises:
        DataError: the text is not JSON, or it holds several tables.
    """
    values = list(documents(text, source))
    if len(values) == 1 and isinstance(values[0], dict):
        return table(values[0], source)
    rows = [row for value in values for row in (value if isinstance(value, list) else [value])]
    kinds = {type(value) for value in values}
    if len(values) < 2 or kinds == {dict}:
        return rows, "" if len(values) < 2 else "objects one after the other"
    return rows, f"{len(values)} arrays one after the other"


def documents(text: str, source: str) -> Iterator[Any]:
    """Yield the JSON values that stand one after the other in a text, separated by blanks or commas."""
    decoder, position = json.JSONDecoder(object_pairs_hook=reject_duplicate_keys), 0
    while position < len(text):
        if text[position] in SPACE:
            position += 1
            continue
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            line, column = where(text, error.pos)
            comma = text[: error.pos].rstrip(SPACE).endswith(",") and text[error.pos :].lstrip(SPACE)[:1] in (
                "]",
                "}",
            )
            hint = " A comma stands before the closing bracket; remove it." if comma else ""
            raise DataError(
                f"{source}: malformed JSON at line {line:,}, column {column:,}: {error.msg}.{hint} Expected an array "
                "of objects, or one object a line."
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: malformed JSON: {str(error)[:200]}") from error
        yield value


def where(text: str, position: int) -> tuple[int, int]:
    """Return line and column of a character position, both counted from 1."""
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


def table(value: dict[str, Any], source: str) -> tuple[list[Any], str]:
    """The rows of an object that is a table or holds one; any other object is the only row."""
    if (
        {"columns", "data"} <= set(value)
        and isinstance(value["columns"], list)
        and isinstance(value["data"], list)
    ):
        names = [str(name) for name in value["columns"]]
        return [dict(zip(names, row, strict=False)) for row in value["data"]], "a table with columns and data"
    tables = [key for key, item in value.items() if is_table(item)]
    if len(tables) > 1:
        raise DataError(
            f"{source}: one object that holds several tables ({', '.join(tables)}). Write each of them to a file of "
            "its own, as an array of objects."
        )
    if tables:
        return value[tables[0]], f"the rows under {tables[0]!r}"
    columns = {key: list(item.values()) if isinstance(item, dict) else item for key, item in value.items()}
    sizes = {len(item) if isinstance(item, list) else -1 for item in columns.values()}
    by_column = len(sizes) == 1 and sizes != {-1} and not any(is_messages(item) for item in columns.values())
    if by_column and (
        len(columns) > 1 or all(isinstance(item, list | str) for item in next(iter(columns.values())))
    ):
        names = list(columns)
        return [
            dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ], "a table by column"
    return [value], ""


def is_table(value: Any) -> bool:
    """Whether a value is a list of rows: objects, none of which is a message."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) for item in value)
        and not is_messages(value)
    )
