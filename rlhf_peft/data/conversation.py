"""Messages and prompts inside a row: system messages, and the prompt that a pair of answers shares.

Two ways of splitting plain text: at the last turn that both share (`Assistant:`, as in HH), always; at the
last blank that both share (as TRL does), only where a prompt is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

Messages = list[dict[str, Any]]

TURN = re.compile(r"\n\n(?:Assistant|### ?(?:Response|Assistant)):")

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}


def is_messages(value: Any) -> TypeGuard[Messages]:
    """Whether a value is a conversation: a list of messages with roles."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def tidy(messages: Messages) -> Messages:
    """The messages without the empty keys that a table fills in; templates ask whether a key is there."""
    return [
        {key: value for key, value in message.items() if value is not None or key == "content"}
        for message in messages
    ]


def with_system(messages: Any, system: str | None) -> Any:
    """The messages with a system message first, unless there is one or the value is plain text."""
    if system is None or not isinstance(messages, list) or (messages and messages[0].get("role") == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def from_sharegpt(turns: list[dict[str, Any]]) -> Messages:
    """`from`/`value` turns as messages; messages as they are."""
    return [turn if turn.get("role") is not None else sharegpt_turn(turn) for turn in turns]


def sharegpt_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """One `from`/`value` turn as a message."""
    speaker = turn.get("from")
    return {"role": SHAREGPT_ROLES.get(str(speaker), speaker), "content": turn.get("value")}


def explicit(row: Mapping[str, Any], *, words: bool = False) -> dict[str, Any]:
    """A preference row with its prompt apart, and all three parts plain or all three conversational.

    Args:
        row: `chosen`, `rejected`, perhaps `prompt`; further columns are kept.
        words: split plain text that has no turns at the last shared blank; else its prompt is empty.
    """
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if is_messages(chosen) and is_messages(rejected):
        parts: tuple[Any, Any, Any] = explicit_messages(prompt, tidy(chosen), tidy(rejected))
    elif is_messages(prompt):
        parts = tidy(prompt), answer(chosen), answer(rejected)
    elif prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        cut = shared_prompt(chosen, rejected, words)
        parts = chosen[:cut], chosen[cut:], rejected[cut:]
    else:
        parts = prompt, chosen, rejected
    return {**row, **dict(zip(("prompt", "chosen", "rejected"), parts, strict=True))}


def explicit_messages(
    prompt: Any, chosen: Messages, rejected: Messages
) -> tuple[Messages, Messages, Messages]:
    """Prompt and answers of conversational answers that may repeat the prompt."""
    if is_messages(prompt):
        prompt = tidy(prompt)
        size = len(prompt)
        repeats = chosen[:size] == prompt == rejected[:size] and len(chosen) > size < len(rejected)
        return (prompt, chosen[size:], rejected[size:]) if repeats else (prompt, chosen, rejected)
    cut = 0
    for ours, theirs in zip(chosen[:-1], rejected[:-1], strict=False):
        if ours != theirs:
            break
        cut += 1
    if cut == 0 and isinstance(prompt, str):
        return [{"role": "user", "content": prompt}], chosen, rejected
    return chosen[:cut], chosen[cut:], rejected[cut:]


def answer(value: Any) -> Any:
    """A plain answer to a conversational prompt, as a message."""
    return [{"role": "assistant", "content": value}] if isinstance(value, str) else value


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
