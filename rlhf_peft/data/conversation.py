"""Brings conversations of different origins into one standard form.

A conversation is a list of messages. In the standard form each message has a `role` (system, developer, user,
assistant or tool), a `content` that is text or None, and all other keys that its row gave it (`tool_calls`,
`reasoning_content`, `name`, ...). `messages_of` brings a value into this form or raises `BadRow`; nothing is
dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from .calls import tool_calls
from .rows import BadRow

Message = dict[str, Any]
Messages = list[Message]

ROLES = ("system", "developer", "user", "assistant", "tool")
ALIASES = {
    "human": "user",
    "prompter": "user",
    "customer": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""Names of the roles in other formats (ShareGPT, OpenAssistant, Gemini, Llama); letter case does not matter."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold thoughts, besides its content."""
UNTRAINED_KEYS = (
    *("content", "value", "text", "parts", "refusal"),
    *("image", "images", "audio", "audios", "video", "videos", "file", "files", "documents"),
)
"""Keys of a message with further content, which no stage trains on."""
PART_KEYS = ("type", "text", "id", "index", "cache_control")
"""Keys that a part of a content may have."""


def is_messages(value: Any) -> TypeGuard[Messages]:
    """Whether a value is meant as a conversation: a list of objects, each with the key `role` or `from`."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in value)
    )


def messages_of(value: Any, name: str) -> Messages:
    """A conversation in the standard form.

    Args:
        value: a list of messages with `role` and `content`, or of ShareGPT turns with `from` and `value`.
        name: name of the column, for messages.

    Raises:
        BadRow: a role is unknown, a message has no text, or its content is not text.
    """
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} is {describe(value)}, expected messages with role and content", wrong(name))
    return [
        message_of(message, f"message {number} of {name}", name) for number, message in enumerate(value, 1)
    ]


def message_of(message: Any, where: str, name: str) -> Message:
    """One message in the standard form; raises BadRow if it is no message, or holds what no template writes."""
    if not isinstance(message, dict):
        raise BadRow(f"{where} is {describe(message)}, expected an object with role and content", wrong(name))
    role_key = "from" if message.get("role") is None and "from" in message else "role"
    content_key = "value" if message.get("content") is None and "value" in message else "content"
    role, content = message.get(role_key), content_of(message.get(content_key), where, name)
    rest = {
        k: value for k, value in message.items() if k not in (role_key, content_key) and value is not None
    }
    result = {"role": role_of(role, where), "content": content}
    result |= tool_calls(rest.pop("tool_calls", None), rest.pop("function_call", None), where)
    result |= rest
    if result["content"] is None and not any(result.get(key) for key in ("tool_calls", *THOUGHTS)):
        known = ", ".join(map(str, message)) or "none"
        missing_key = "value" if role_key == "from" else "content"
        raise BadRow(f"{where} has no {missing_key} (its keys: {known})", f"with an empty message in {name}")
    check_rest(rest, content, where, name)
    return result


def check_rest(rest: Mapping[str, Any], content: str | None, where: str, name: str) -> None:
    """Raise BadRow if a message holds further content, or is marked as not to be trained on."""
    for key in UNTRAINED_KEYS:
        if rest.get(key) not in (None, "", [], {}, content):
            raise BadRow(
                f"{where} holds {key} beside its text; only role, text and tool calls are trained on",
                f"with {key} in messages of {name}",
                f"Write it into the text, or remove the key {key}",
            )
    for key in ("weight", "train", "trainable"):
        if key in rest and rest[key] in (0, False):
            raise BadRow(
                f"{where} has {key} {rest[key]!r}, which is not read: every turn would be trained on",
                f"with turns that are not to be trained on in {name}",
                "Give such rows as prompt and completion, or remove the key",
            )


def role_of(role: Any, where: str) -> str:
    """The role under the name that chat templates use; raises BadRow for an unknown role."""
    name = role.strip().lower() if isinstance(role, str) else role
    name = ALIASES.get(name, name) if isinstance(name, str) else None
    if name not in ROLES:
        problem = "no role" if role is None else f"the role {role!r}"
        raise BadRow(
            f"{where} has {problem}, expected one of {', '.join(ROLES)}",
            "with an unknown role",
            "Rename the role, or remove the row",
        )
    return str(name)


def content_of(content: Any, where: str, name: str) -> str | None:
    """The text of a content; parts that are text are joined. Raises BadRow for parts of another type."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRow(
            f"the content of {where} is {describe(content)}, expected text",
            wrong(name),
            "Write it as text (a tool's result as json.dumps writes it)",
        )
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(text, str) or kind not in (None, "text", "input_text", "output_text"):
            description = f"of type {kind!r}" if kind is not None else f"that is {describe(part)}"
            raise BadRow(
                f"the content of {where} holds a part {description}; only parts of text are trained on",
                f"with {name} that is not text alone",
            )
        extra = part if isinstance(part, dict) else {}
        further = [k for k, v in extra.items() if k not in PART_KEYS and v not in (None, "", [], {})]
        if further:
            raise BadRow(
                f"the content of {where} holds a part with {', '.join(further)} beside its text; only text is "
                "trained on",
                f"with {name} that is not text alone",
            )
        texts.append(text)
    return "".join(texts)


def with_system(messages: Any, system: str | None) -> Any:
    """The messages with a system message first, unless there is one or the value is plain text."""
    if system is None or not isinstance(messages, list) or (messages and messages[0].get("role") == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


# --- descriptions for messages ---


def describe(value: Any) -> str:
    """Description of a value for a message."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        return "text"
    if is_messages(value):
        return "messages"
    return {"list": "a list", "dict": "an object"}.get(type(value).__name__, f"the value {value!r}")


def wrong(name: str) -> str:
    """`BadRow.kind` of a row whose column holds a value of another type."""
    return f"with {name} of the wrong type"
