"""What makes a row bad, whatever the tokenizer: empty, of the wrong type, or without a preference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .conversation import is_messages
from .formats import Format
from .rows import BadRow

LABELS = {word: True for word in ("true", "1", "1.0", "yes")} | {
    word: False for word in ("false", "0", "0.0", "no")
}


def check_row(row: Mapping[str, Any], format: Format) -> None:
    """Raise BadRow if a row, its prompt apart, cannot be used in its format.

    Args:
        row: values by column; preference rows as `explicit` returns them.
        format: of the dataset.
    """
    for name in format.columns:
        check_value(row.get(name), name, messages=format.conversational)
    if format.kind == "preference":
        if row["chosen"] == row["rejected"]:
            raise BadRow("chosen and rejected are the same", "with chosen equal to rejected")
        if format.conversational and not row["prompt"]:
            raise BadRow(
                "chosen and rejected share no first message, so there is no prompt", "without a prompt"
            )
        if not format.conversational and not isinstance(row["prompt"], str):
            raise wrong_type("prompt", row["prompt"], "text")
    if format.kind == "unpaired_preference":
        label_of(row["label"])


def check_value(value: Any, name: str, *, messages: bool) -> None:
    """Raise BadRow if a prompt or answer is empty or of the wrong type."""
    if name == "label":
        return
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise BadRow(f"{name} is empty", f"with an empty {name}")
    expected = "messages with role and content" if messages else "text"
    if messages != is_messages(value) or (not messages and not isinstance(value, str)):
        raise wrong_type(name, value, expected)
    if messages:
        check_messages(value, name)


def check_messages(messages: list[dict[str, Any]], name: str) -> None:
    """Raise BadRow if a message has no role or, unless it calls a tool, no content."""
    for message in messages:
        content = message.get("content")
        if not isinstance(message["role"], str):
            raise BadRow(f"{name} holds a message without a role", f"with {name} of the wrong type")
        if content is not None and not isinstance(content, str | list):
            raise wrong_type(f"the content of a message in {name}", content, "text")
    last = messages[-1]
    empty = last.get("content") is None or (isinstance(last["content"], str) and not last["content"].strip())
    if empty and not last.get("tool_calls"):
        raise BadRow(f"{name} ends with an empty message", f"with an empty {name}")


def label_of(value: Any) -> bool:
    """True for a desirable answer, False for an undesirable one; BadRow for anything else."""
    if isinstance(value, bool):
        return value
    known = LABELS.get(str(value).strip().lower())
    if known is None:
        raise BadRow(f"label is {value!r}, expected true or false", "with a label that is not true or false")
    return known


def wrong_type(name: str, value: Any, expected: str) -> BadRow:
    """The error for a value of another type than expected."""
    return BadRow(f"{name} is {describe(value)}, expected {expected}", f"with {name} of the wrong type")


def describe(value: Any) -> str:
    """What a value is, for a message."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        return "text"
    if is_messages(value):
        return "messages"
    return {"list": "a list", "dict": "an object"}.get(type(value).__name__, f"the value {value!r}")
