"""Checks that everything in a conversation appears in the text that the chat template made of it.

Templates leave out what they do not know: roles, tools, parts of a content, thoughts. A model would then be trained
on something else than the row, and nobody would notice. `missing` finds texts of this one conversation that are
left out or moved; the module `marks` finds what the template does with every text in that place. Blanks are not
compared, and a text may appear as JSON writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .conversation import THOUGHTS, Messages

PYTHON_WORDS = {"true": "True", "false": "False", "null": "None"}
SHOWN = 40
"""Most characters of a text that a message quotes."""


def missing(
    text: str, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None
) -> tuple[str | None, bool]:
    """Find what a rendered text does not hold of a conversation.

    Args:
        text: output of the chat template.
        messages: the conversation, in the form of `conversation.messages_of`.
        tools: JSON schemas of the offered tools.

    Returns:
        A description of the first missing text, or None; and whether thoughts of earlier turns are left out,
            which many
        templates do on purpose.
    """
    bare = without_blanks(text)
    for what, value in tool_texts(tools or ()):
        if find_end(bare, value, 0) < 0:
            return what, False
    turn_end, left_out = 0, False
    for number, message in enumerate(messages, start=1):
        where = f"message {number} ({message['role']})"
        start = 0 if message["role"] in ("system", "developer") else turn_end
        earlier = message["role"] == "assistant" and any(m["role"] == "user" for m in messages[number:])
        end = start
        for what, value in message_texts(message):
            match_end = find_end(bare, value, start)
            if match_end < 0 and earlier and is_thought(what, value):
                left_out, rest = True, value.rpartition("</think>")[2] if what == "the content" else ""
                match_end = find_end(bare, rest, start)
            if match_end < 0:
                return f"{what} of {where}, {quoted(value)},", left_out
            end = max(end, match_end)
        if message["role"] not in ("system", "developer"):
            turn_end = end
    return None, left_out


def message_texts(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every text of a message that the rendered text must hold, each with its name for messages."""
    for key in THOUGHTS:
        if isinstance(message.get(key), str):
            yield key, message[key]
    if message["content"]:
        yield "the content", message["content"]
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        yield "the tool call", function["name"]
        for value in leaves(function["arguments"]):
            yield f"an argument of the tool call {function['name']}", value


def tool_texts(tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Names, descriptions and allowed values of tools and of their parameters."""
    for tool in tools:
        function = tool.get("function", tool)
        yield f"the tool {function['name']}", function["name"]
        for key, value in schema_texts(function):
            yield f"the {key} {quoted(value)} of the tool {function['name']}", value


def schema_texts(schema: Any, names: bool = False) -> Iterator[tuple[str, str]]:
    """The texts of a JSON schema that a model reads: names of parameters, descriptions, allowed values."""
    if isinstance(schema, list):
        for item in schema:
            yield from schema_texts(item)
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        if names:
            yield "parameter", str(key)
        elif key == "description" and isinstance(value, str):
            yield "description", value
        elif key == "enum" and isinstance(value, list):
            yield from (("allowed value", item) for item in value if isinstance(item, str))
        if isinstance(value, Mapping | list):
            yield from schema_texts(value, names=key in ("properties", "$defs") and not names)


def leaves(value: Any) -> Iterator[str]:
    """Every key and value inside the arguments of a call, as text; numbers and the like as JSON writes them."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def is_thought(what: str, value: str) -> bool:
    """Whether a text is a thought, or begins with one."""
    return what in THOUGHTS or "</think>" in value


def find_end(text: str, value: str, start: int) -> int:
    """Where a value ends in a text without blanks, in any of its written forms; -1 if it is not in the text."""
    ends = []
    for form in forms(value, escaped="\\" in text):
        position = text.find(form, start)
        if position >= 0:
            ends.append(position + len(form))
    return min(ends, default=-1)


def forms(value: str, escaped: bool = True) -> set[str]:
    """A text without blanks, as it is and as JSON or Python writes it.

    Args:
        value: the text.
        escaped: also return forms with a backslash that the text itself does not have. They are expensive, and no
            text without a backslash holds them.
    """
    variants = {value, PYTHON_WORDS.get(value, value)}
    if escaped:
        variants |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    return {without_blanks(form) for form in variants}


def without_blanks(text: str) -> str:
    """The text without blanks."""
    return "".join(text.split())


def quoted(text: str) -> str:
    """The beginning of a text, quoted."""
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")
