"""JSON as text: in files, and in columns that hold a conversation, tools or the arguments of a call.

A key that stands twice in one object is an error: Python would keep the last value and drop the first without a word.
"""

from __future__ import annotations

import json
import re
from typing import Any

from .rows import BadRow

SPEAKERS, SAID = ("role", "from"), ("content", "value", "tool_calls", "function_call")

DEEPEST = 200
"""Lists and objects that may stand in one another; templates and tables go through them one call inside another."""
TOO_DEEP = f"lists and objects are nested more than {DEEPEST} deep"


class DoubledKey(ValueError):
    """A key stands twice in one JSON object."""


class TooDeep(ValueError):
    """Lists and objects stand in one another more than `DEEPEST` times."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its pairs, for `object_pairs_hook`; DoubledKey where a key stands twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DoubledKey(f"the key {twice[:60]!r} stands twice in one object; rename or remove one of them")
    return made


DECODER = json.JSONDecoder(object_pairs_hook=once)
"""As `json.loads` makes one for every text."""


def loads(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, a key stands twice in one object, or it is nested too deeply.
        RecursionError: it is nested so deeply that Python cannot read it.
    """
    value = DECODER.decode(text) if text[:1] == "{" else json.loads(text, object_pairs_hook=once)
    if text.count("[") + text.count("{") > DEEPEST and is_deep(value):
        raise TooDeep(TOO_DEEP)
    return value


def is_deep(value: Any) -> bool:
    """Whether lists and objects stand in one another more than `DEEPEST` times."""
    level = [value]
    for _ in range(DEEPEST + 1):
        if not level:
            return False
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def parsed(text: str, name: str) -> Any:
    """The value of a column that holds JSON as text; BadRow where it looks like that and is not."""
    try:
        return loads(text)
    except DoubledKey as error:
        raise BadRow(f"{name} is JSON text in which {error}", f"with a doubled key in {name}") from error
    except (TooDeep, RecursionError) as error:
        raise BadRow(f"{name} is JSON text whose {TOO_DEEP}", "nested too deeply") from error
    except ValueError as error:
        raise BadRow(
            f"{name} is text that is not JSON, expected a list (Python's own way of writing lists is not JSON)",
            f"with {name} of the wrong type",
            "Write the column with json.dumps",
        ) from error


PYTHON = re.compile(r"""\s*\[?\s*\{[^{}]*'(?:role|from)'\s*:[^{}]*'(?:content|value)'\s*:""")
"""How a conversation begins that Python wrote, not JSON."""
BROKEN = re.compile(r"""\s*\[\s*\{\s*"(?:role|from)"\s*:\s*"[^"]*"\s*,\s*"(?:content|value)"\s*:""")
"""How a conversation begins that JSON wrote; for text that is not JSON as a whole."""


def is_turn(value: Any) -> bool:
    """Whether a value is an object with a speaker and something said."""
    return (
        isinstance(value, dict)
        and any(isinstance(value.get(key), str) for key in SPEAKERS)
        and any(key in value for key in SAID)
    )


def is_written(value: Any) -> bool:
    """Whether a value is text that was meant as a conversation, or as one turn of it.

    Other JSON in a text, such as an answer that is a list of objects, is text.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return False
    if not any(f'"{key}"' in value or f"'{key}'" in value for key in SPEAKERS):
        return False
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return bool(PYTHON.match(value) or BROKEN.match(value))
    return is_turn(found) or (isinstance(found, list) and bool(found) and all(map(is_turn, found)))


def unwritten(value: Any, name: str) -> Any:
    """A conversation that stands as JSON text in its column, or as one turn alone; other values as they are."""
    value = parsed(value, name) if is_written(value) else value
    return [value] if is_turn(value) else value
