"""JSON as text: in files, and in columns that hold a conversation, tools or the arguments of a call.

A key that occurs twice in one object is an error: Python's parser would keep the last value and silently drop the
first.
"""

from __future__ import annotations

import json
import re
from typing import Any

from .rows import BadRow

ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "tool_calls", "function_call")

DEEPEST = 200
"""Deepest nesting of lists and objects. Templates and tables process them by recursion, so the depth is limited."""
TOO_DEEP = f"lists and objects are nested more than {DEEPEST} deep"


class DuplicateKey(ValueError):
    """A key occurs twice in one JSON object."""


class TooDeep(ValueError):
    """Lists and objects are nested more than `DEEPEST` deep."""


def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its key-value pairs (for `object_pairs_hook`); raises DuplicateKey if a key occurs twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise DuplicateKey(
            f"the key {duplicate[:60]!r} stands twice in one object; rename or remove one of them"
        )
    return result


DECODER = json.JSONDecoder(object_pairs_hook=reject_duplicate_keys)
"""Made once, because `json.loads` with a hook makes a new decoder for every text."""


def loads(text: str) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: the text is not JSON, a key occurs twice in one object, or the nesting is too deep.
        RecursionError: the nesting is so deep that Python cannot parse it.
    """
    value = (
        DECODER.decode(text) if text[:1] == "{" else json.loads(text, object_pairs_hook=reject_duplicate_keys)
    )
    if text.count("[") + text.count("{") > DEEPEST and is_deep(value):
        raise TooDeep(TOO_DEEP)
    return value


def is_deep(value: Any) -> bool:
    """Whether lists and objects are nested more than `DEEPEST` deep."""
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


def parse_column(text: str, name: str) -> Any:
    """Parse the value of a column that holds JSON as text; raises BadRow if it is not valid JSON."""
    try:
        return loads(text)
    except DuplicateKey as error:
        raise BadRow(f"{name} is JSON text in which {error}", f"with a doubled key in {name}") from error
    except (TooDeep, RecursionError) as error:
        raise BadRow(f"{name} is JSON text whose {TOO_DEEP}", "nested too deeply") from error
    except ValueError as error:
        raise BadRow(
            f"{name} is text that is not JSON, expected a list (Python's own way of writing lists is not JSON)",
            f"with {name} of the wrong type",
            "Write the column with json.dumps",
        ) from error


PYTHON_REPR = re.compile(r"""\s*\[?\s*\{[^{}]*'(?:role|from)'\s*:[^{}]*'(?:content|value)'\s*:""")
"""The beginning of a conversation written with Python's `repr` instead of JSON."""
BROKEN_JSON = re.compile(r"""\s*\[\s*\{\s*"(?:role|from)"\s*:\s*"[^"]*"\s*,\s*"(?:content|value)"\s*:""")
"""The beginning of a conversation in JSON, for a text that as a whole is not valid JSON."""


def is_turn(value: Any) -> bool:
    """Whether a value is an object with a role and a content."""
    return (
        isinstance(value, dict)
        and any(isinstance(value.get(key), str) for key in ROLE_KEYS)
        and any(key in value for key in CONTENT_KEYS)
    )


def is_conversation_json(value: Any) -> bool:
    """Whether a value is text that holds a conversation, or one message of it, as JSON.

    Other JSON in a text, such as an answer that is a list of objects, stays text.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return False
    if not any(f'"{key}"' in value or f"'{key}'" in value for key in ROLE_KEYS):
        return False
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return bool(PYTHON_REPR.match(value) or BROKEN_JSON.match(value))
    return is_turn(parsed) or (isinstance(parsed, list) and bool(parsed) and all(map(is_turn, parsed)))


def decode_conversation(value: Any, name: str) -> Any:
    """Parse a conversation stored as JSON text; a single message becomes a list; other values are unchanged."""
    value = parse_column(value, name) if is_conversation_json(value) else value
    return [value] if is_turn(value) else value
