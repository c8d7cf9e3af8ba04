"""Checks whether a chat template writes every text of a conversation, once and in its place.

Every text of a conversation and of its tools is replaced by a unique mark, and the marks are searched in the output of
the template. So the result does not depend on the texts themselves: a short one (`a`) would be found anywhere.
Conversations that become equal when they are marked share one result.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .conversation import THOUGHTS, Messages

INSIDE = " x\n\n    "
"""Blanks put into the middle of each marked content; a template must keep them."""

NO_TEXT = ("role", "content", "tool_calls", "tool_call_id", "type", "index")
"""Keys of a message whose values are not marked, because a template may need them."""
ABOUT = ("id", "uuid", "message_id", "timestamp", "created", "created_at", "model", "source")
"""Keys of a message that hold metadata, which a model need not see."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark that replaces a text.

    Attributes:
        text: the mark itself.
        what: description of the replaced text, for a message.
        message: index of its message, counted from 0; -1 for tools.
        kind: content, thought, call, key, value, tool, or other (a further key of a message).
    """

    text: str
    what: str
    message: int
    kind: str


@dataclass
class Marked:
    """A conversation whose texts are replaced by marks.

    Attributes:
        messages: the messages with marks.
        tools: the tools with marks.
        marks: all marks, in the order of the conversation.
    """

    messages: Messages = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    marks: list[Mark] = field(default_factory=list)

    @property
    def shape(self) -> str:
        """A key that is equal for conversations that differ only in their texts."""
        return json.dumps([self.messages, self.tools], default=str)


def plain_shape(messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None) -> Hashable | None:
    """A key as `Marked.shape`, found without marks; None if messages hold more than a role and a text, or for tools."""
    if tools:
        return None
    shape = []
    for message in messages:
        content = message["content"]
        if tuple(message) != ("role", "content") or "</think>" in (content or ""):
            return None
        shape.append((message["role"], *(() if content and content.strip() else (content,))))
    return tuple(shape)


def mark(messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None) -> Marked:
    """Replace the texts of a conversation and its tools by marks."""
    marked, numbers = Marked(), itertools.count()

    def new(what: str, message: int, kind: str) -> str:
        text = f"zq{next(numbers)}qz"
        marked.marks.append(Mark(text, what, message, kind))
        return text

    def arguments(value: Any, what: str, message: int) -> Any:
        if isinstance(value, Mapping):
            return {new(what, message, "key"): arguments(item, what, message) for item in value.values()}
        if isinstance(value, list):
            return [arguments(item, what, message) for item in value]
        return new(what, message, "value") if isinstance(value, str) and value.strip() else value

    def content(text: str, what: str, message: int) -> str:
        if "</think>" in text:
            before, end, rest = text.rpartition("</think>")
            opening = before[: before.find("<think>") + len("<think>")] if "<think>" in before else ""
            inner = before[len(opening) :]
            if inner.strip():
                inner = inner.replace(inner.strip(), new(f"the thoughts in {what}", message, "thought"))
            after = rest.replace(rest.strip(), content(rest.strip(), what, message)) if rest.strip() else rest
            return f"{opening}{inner}{end}{after}"
        head = new(what, message, "content")
        return f"{head}{INSIDE}{tail(head)}"

    def message(message: Mapping[str, Any], number: int) -> dict[str, Any]:
        where, other = f"message {number + 1} ({message['role']})", dict(message)
        if (message["content"] or "").strip():
            other["content"] = content(message["content"], f"the content of {where}", number)
        for key, value in message.items():
            if key not in NO_TEXT and isinstance(value, str) and value.strip():
                kind = "thought" if key in THOUGHTS else "other"
                other[key] = new(f"{key} of {where}" if kind == "thought" else key, number, kind)
        if message.get("tool_calls"):
            calls, written = f"the tool calls of {where}", []
            for call in message["tool_calls"]:
                function = dict(call.get("function", call))
                function["name"] = new(calls, number, "call")
                function["arguments"] = arguments(function["arguments"], f"the arguments of {calls}", number)
                written.append({**call, "function": function} if "function" in call else function)
            other["tool_calls"] = written
        return other

    marked.messages = [message(item, number) for number, item in enumerate(messages)]
    if tools:
        marked.tools = [_tool(tool, new) for tool in tools]
    return marked


def _tool(tool: Mapping[str, Any], new: Any) -> dict[str, Any]:
    """Replace the texts of a tool by marks; a parameter has the same mark wherever the schema repeats its name."""
    names: dict[str, str] = {}

    def schema(value: Any, inside: bool = False) -> Any:
        if isinstance(value, list):
            return [schema(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        result: dict[str, Any] = {}
        for key, item in value.items():
            if inside:
                names[key] = names.get(key) or new("a parameter of a tool", -1, "tool")
                result[names[key]] = schema(item)
            elif key == "description" and isinstance(item, str) and item.strip():
                result[key] = new("a description of a tool", -1, "value")
            elif key == "enum" and isinstance(item, list):
                result[key] = [
                    new("an allowed value of a tool", -1, "tool") if isinstance(i, str) else i for i in item
                ]
            else:
                result[key] = schema(item, inside=key in ("properties", "$defs"))
        return result

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        required = value.get("required")
        result = {key: renamed(item) for key, item in value.items()}
        if isinstance(required, list):
            result["required"] = [
                names.get(name, name) if isinstance(name, str) else name for name in required
            ]
        return result

    function = dict(tool.get("function", tool))
    function = renamed(schema({**function, "name": None}))
    function["name"] = new("a tool", -1, "tool")
    return {**tool, "function": function} if "function" in tool else function


def misplaced(text: str, marked: Marked) -> str | None:
    """Describe the first text that a template wrote twice, not at all, or in another place; None if all is well.

    Args:
        text: output of the template for the marked conversation.
        marked: that conversation.
    """
    counts = {mark.text: text.count(mark.text) for mark in marked.marks}
    tools = [mark for mark in marked.marks if mark.message < 0]
    if tools and not any(counts[mark.text] for mark in tools):
        return "the tools are not written"
    for mark in marked.marks:
        if mark.kind == "other" or (mark.kind == "thought" and _earlier(marked.messages, mark.message)):
            continue
        be = "are" if mark.what.startswith(("the tool calls", "the arguments", "the thoughts")) else "is"
        if not counts[mark.text]:
            return f"{mark.what} {be} not written"
        if counts[mark.text] > 1 and mark.kind in ("content", "thought", "value"):
            return f"{mark.what} {be} written more than once"
        if mark.kind == "key" and f"'{mark.text}': " in text:
            return f"{mark.what} are written as Python writes them, not as JSON"
        if mark.kind == "content" and not _whole(text, mark.text):
            return f"{mark.what} is written with other blanks inside"
    return _moved(text, marked)


def unwritten_keys(text: str, marked: Marked) -> Iterator[str]:
    """Further keys of messages that hold text and that the template does not write."""
    for mark in marked.marks:
        named = mark.what == "name" and marked.messages[mark.message]["role"] == "tool"
        if mark.kind == "other" and mark.what not in ABOUT and not named and mark.text not in text:
            yield mark.what


def _earlier(messages: Messages, number: int) -> bool:
    """Whether a message of the assistant is followed by one of the user."""
    return messages[number]["role"] == "assistant" and any(m["role"] == "user" for m in messages[number:])


def tail(head: str) -> str:
    """The mark at the end of a content whose first mark is `head`."""
    return head.replace("q", "r")


def _whole(text: str, head: str) -> bool:
    """Whether a marked content appears in a text with its blanks, perhaps as JSON writes them."""
    inside = INSIDE
    for _ in range(3):
        if f"{head}{inside}{tail(head)}" in text:
            return True
        inside = json.dumps(inside)[1:-1]
    return False


def _moved(text: str, marked: Marked) -> str | None:
    """The first text that appears before those of an earlier message, or a system message inside an answer."""
    furthest = -1
    position_of = {
        mark: text.find(mark.text) for mark in marked.marks if mark.message >= 0 and mark.text in text
    }
    contents = sorted(
        (position, mark.message) for mark, position in position_of.items() if mark.kind == "content"
    )
    for number, message in enumerate(marked.messages):
        positions = {mark: position for mark, position in position_of.items() if mark.message == number}
        if message["role"] in ("system", "developer"):  # it may stand before any question
            for mark, position in positions.items():
                after = next((index for begin, index in contents if begin > position), number + 1)
                if after != number + 1 and marked.messages[after]["role"] == "assistant":
                    return f"{mark.what} stands in another place"
            continue
        for mark, position in positions.items():
            if position < furthest and mark.kind in ("content", "thought", "value"):
                return f"{mark.what} stands in another place"
        furthest = max(
            [furthest, *(position for mark, position in positions.items() if mark.kind == "content")]
        )
    return None
