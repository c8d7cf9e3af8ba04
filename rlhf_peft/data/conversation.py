"""Conversations in one form, whoever wrote them, and the prompt that answers share.

A conversation is a list of messages. In the one form each message has a `role` (system, developer, user, assistant
or tool), a `content` that is text or None, and whatever else its row gave it (`tool_calls`, `reasoning_content`,
`name`, ...). `messages_of` brings a value into this form or raises `BadRow`; nothing is dropped.

Plain text is split in two ways: at the last turn that both answers share (`Assistant:`, as in HH), always; at the last
blank that both share (as TRL does), only where a prompt is needed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from .rows import BadRow

Message = dict[str, Any]
Messages = list[Message]

TURN = re.compile(r"\n\n(?:Assistant|### ?(?:Response|Assistant)):")

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
"""Names that other formats give to the roles (ShareGPT, OpenAssistant, Gemini, Llama); letter case does not matter."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold text beside its content."""


def is_messages(value: Any) -> TypeGuard[Messages]:
    """Whether a value is meant as a conversation: a list of objects, each with a role or a speaker."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in value)
    )


def messages_of(value: Any, name: str) -> Messages:
    """A conversation in the one form.

    Args:
        value: a list of messages with `role` and `content`, or of ShareGPT turns with `from` and `value`.
        name: of the column, for messages.

    Raises:
        BadRow: a role is unknown, a message has no text, or its content is not text.
    """
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} is {describe(value)}, expected messages with role and content", wrong(name))
    return [message_of(message, f"message {place} of {name}", name) for place, message in enumerate(value, 1)]


def message_of(message: Any, where: str, name: str) -> Message:
    """One message in the one form; BadRow where it is none."""
    if not isinstance(message, dict):
        raise BadRow(f"{where} is {describe(message)}, expected an object with role and content", wrong(name))
    keys = ("from", "value") if message.get("role") is None and "from" in message else ("role", "content")
    role, content = message.get(keys[0]), message.get(keys[1])
    rest = {key: value for key, value in message.items() if key not in keys and value is not None}
    made = {"role": role_of(role, where), "content": content_of(content, where, name)}
    made |= tool_calls(rest.pop("tool_calls", None), rest.pop("function_call", None), where)
    made |= rest
    if made["content"] is None and not any(made.get(key) for key in ("tool_calls", *THOUGHTS)):
        known = ", ".join(map(str, message)) or "none"
        raise BadRow(f"{where} has no {keys[1]} (its keys: {known})", f"with an empty message in {name}")
    return made


def role_of(role: Any, where: str) -> str:
    """The role by the name that chat templates know; BadRow for one that none knows."""
    name = role.strip().lower() if isinstance(role, str) else role
    name = ALIASES.get(name, name) if isinstance(name, str) else None
    if name not in ROLES:
        given = "no role" if role is None else f"the role {role!r}"
        raise BadRow(
            f"{where} has {given}, expected one of {', '.join(ROLES)}",
            "with an unknown role",
            "Rename the role, or remove the row",
        )
    return str(name)


def content_of(content: Any, where: str, name: str) -> str | None:
    """The text of a content; parts that are text are joined. BadRow for parts of another kind."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRow(f"the content of {where} is {describe(content)}, expected text", wrong(name))
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(text, str) or kind not in (None, "text", "input_text", "output_text"):
            shown = f"of type {kind!r}" if kind is not None else f"that is {describe(part)}"
            raise BadRow(
                f"the content of {where} holds a part {shown}; only parts of text are trained on",
                f"with {name} that is not text alone",
            )
        texts.append(text)
    return "".join(texts)


def tool_calls(calls: Any, call: Any, where: str) -> dict[str, Any]:
    """`tool_calls` with their arguments as objects; an old `function_call` becomes one of them."""
    calls = calls or ([call] if call else [])
    if not calls:
        return {}
    if not isinstance(calls, list) or not all(isinstance(item, dict) for item in calls):
        raise BadRow(
            f"the tool calls of {where} are {describe(calls)}, expected a list of objects",
            "with malformed tool calls",
        )
    made = []
    for item in calls:
        function = item.get("function", item)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(f"a tool call of {where} has no function name", "with malformed tool calls")
        function = {**function, "arguments": arguments_of(function.get("arguments"), where)}
        made.append({"type": "function", **item, "function": function} if "function" in item else function)
    if call and "function" not in made[0]:
        made = [{"type": "function", "function": function} for function in made]
    return {"tool_calls": made}


def arguments_of(arguments: Any, where: str) -> dict[str, Any]:
    """Arguments of a tool call as an object; text is read as JSON, as OpenAI writes it."""
    if isinstance(arguments, str) and arguments.strip():
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments)
    if arguments is None or arguments == "":
        return {}
    if not isinstance(arguments, dict):
        raise BadRow(
            f"the arguments of a tool call of {where} are {describe(arguments)}, expected an object",
            "with malformed tool calls",
        )
    return arguments


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """The tools of a row: a list of JSON schemas, or JSON text of one; None where there are none."""
    if isinstance(value, str) and value.strip():
        value = parsed(value, "tools")
    if value is None or value == [] or value == "":
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow(f"tools is {describe(value)}, expected a list of JSON schemas", wrong("tools"))
    for place, tool in enumerate(value, start=1):
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(f"tool {place} of tools has no function name", wrong("tools"))
    return value


def parsed(text: str, name: str) -> Any:
    """The value of a column that holds JSON as text; BadRow where it looks like that and is not."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRow(
            f"{name} is text that is not JSON, expected a list (Python's own way of writing lists is not JSON)",
            wrong(name),
            "Write the column with json.dumps",
        ) from error


WRITTEN = re.compile(r"""\s*\[\s*\{\s*["'](?:role|from|content|value|id)["']\s*:""")
"""How a conversation begins that was written as text."""


def is_written(value: Any) -> bool:
    """Whether a value is text that was meant as a conversation."""
    return isinstance(value, str) and bool(WRITTEN.match(value))


def unwritten(value: Any, name: str) -> Any:
    """A conversation that stands as JSON text in its column; other values as they are."""
    return parsed(value, name) if is_written(value) else value


def with_system(messages: Any, system: str | None) -> Any:
    """The messages with a system message first, unless there is one or the value is plain text."""
    if system is None or not isinstance(messages, list) or (messages and messages[0].get("role") == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


# --- the prompt of answers ---


def split_prompt(
    prompt: Messages | None, answers: Mapping[str, Messages]
) -> tuple[Messages, dict[str, Messages]]:
    """Prompt and answers, where the answers may repeat the prompt, or hold it alone.

    Turns are compared by role, text and tool calls; ids and the like do not matter.

    Args:
        prompt: the column `prompt`, or None where the row has none.
        answers: conversations by the name of their column; without a prompt, two of them.

    Raises:
        BadRow: what is left of an answer does not begin with a turn of the assistant, or the answers repeat
            different prompts.
    """
    if prompt is None:
        size = shared_turns(*answers.values())
        first = next(iter(answers.values()))
        return first[:size], {name: answer[size:] for name, answer in answers.items()}
    parts = {name: located(prompt, answer, name) for name, answer in answers.items()}
    prompts = [own for own, _ in parts.values()]
    if not all(alike(own, prompts[0]) for own in prompts):
        raise BadRow(f"{' and '.join(parts)} repeat different prompts", "with answers to different prompts")
    return prompts[0], {name: rest for name, (_, rest) in parts.items()}


def shared_turns(first: Messages, second: Messages) -> int:
    """How many turns two conversations begin with alike, such that an answer of the assistant is left of both."""
    most = min(len(first), len(second)) - 1
    size = next((place for place in range(most) if not alike([first[place]], [second[place]])), most)
    while size and not first[size]["role"] == second[size]["role"] == "assistant":
        size -= 1
    return size


def located(prompt: Messages, answer: Messages, name: str) -> tuple[Messages, Messages]:
    """The prompt, with the turns that an answer has before it, and what follows it in the answer."""
    systems = [turns[0] for turns in (prompt, answer) if turns[0]["role"] == "system"]
    asked = prompt[1:] if prompt[0]["role"] == "system" and answer[0]["role"] != "system" else prompt
    for place in range(len(answer) - len(asked)):
        end = place + len(asked)
        if asked and answer[end]["role"] == "assistant" and alike(answer[place:end], asked):
            own = answer[:end]
            return ([prompt[0], *own] if asked is not prompt else own), answer[end:]
    if answer[0]["role"] == "assistant":
        return prompt, answer
    differ = len(systems) == 2 and not alike(systems[:1], systems[1:])
    why = (
        "its system message is not the prompt's" if differ else "its first turns are not those of the prompt"
    )
    raise BadRow(
        f"{name} begins with the role {answer[0]['role']!r}, expected a turn of the assistant: {why}",
        f"with {name} that is not an answer",
        "Give the answer alone, or the prompt's own turns before it",
    )


def alike(ours: Messages, theirs: Messages) -> bool:
    """Whether two stretches of a conversation say the same."""
    return [said(message) for message in ours] == [said(message) for message in theirs]


def said(message: Message) -> list[Any]:
    """What a message says, without ids and the like."""
    values = [message.get(key) for key in ("role", "content", "tool_calls", *THOUGHTS)]
    return [value.strip() if isinstance(value, str) else value for value in values]


def shared_prompt(chosen: str, rejected: str, words: bool) -> int:
    """How many leading characters of two plain texts are their prompt."""
    shared, beyond = 0, min(len(chosen), len(rejected)) + 1
    while beyond - shared > 1:  # the answers agree up to `shared`, and no longer at `beyond`
        middle = (shared + beyond) // 2
        if chosen[shared:middle] == rejected[shared:middle]:
            shared = middle
        else:
            beyond = middle
    turns = [match.end() for match in TURN.finditer(chosen, 0, shared)]
    if turns:
        return turns[-1]
    if not words:
        return 0
    blank = max((place for place in range(shared) if chosen[place].isspace()), default=0)
    return blank if chosen[blank : blank + 1] == " " else blank + (blank > 0)


# --- words for messages ---


def describe(value: Any) -> str:
    """What a value is, for a message."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        return "text"
    if is_messages(value):
        return "messages"
    return {"list": "a list", "dict": "an object"}.get(type(value).__name__, f"the value {value!r}")


def wrong(name: str) -> str:
    """The kind of a bad row whose column holds a value of another type."""
    return f"with {name} of the wrong type"
