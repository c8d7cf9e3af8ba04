"""A row of a dataset as every stage reads it: the format's own columns in one form, the prompt apart.

`example` is the only way from a file's row to an encoder: prompts and answers are plain text, or all of them are
conversations in the form of `conversation`; tools are a list of schemas. What a row holds and no stage can read raises
`BadRow`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checks import figure_of, filled, label_of, probability_of
from .conversation import (
    Messages,
    describe,
    is_messages,
    is_written,
    messages_of,
    parsed,
    shared_prompt,
    split_prompt,
    tools_of,
    unwritten,
    with_system,
    wrong,
)
from .formats import Format
from .rows import BadRow

ANSWERS = ("chosen", "rejected", "completion")


def example(
    row: Mapping[str, Any], format: Format, *, system: str | None = None, words: bool = False
) -> dict[str, Any]:
    """The columns of a format, checked and in one form; `tools` where the row has any.

    A preference keeps `chosen_prob`, the probability that the chosen answer is the better one, and `margin`, by how
    much.

    Args:
        row: values by column.
        format: of the dataset.
        system: put before conversations that have no system message.
        words: split plain answers without a prompt at the last blank that they share, as TRL does; else such a
            row has an empty prompt.

    Raises:
        BadRow: a value is empty or of the wrong type, a role is unknown, an answer is none, or chosen and rejected are
            the same.
    """
    if format.kind == "language_modeling":
        made = demonstration(row, format.columns[0], system)
    elif format.kind == "prompt_only":
        made = {"prompt": prompt_of(row, system)}
    else:
        names = [name for name in ANSWERS if name in format.columns]
        made = answered(row, names, system, words)
    if "label" in format.columns:
        made["label"] = label_of(row["label"])
    if format.kind == "preference":
        if made["chosen"] == made["rejected"]:
            raise BadRow("chosen and rejected are the same", "with chosen equal to rejected")
        if row.get("chosen_prob") not in (None, ""):
            made["chosen_prob"] = probability_of(row)
        if row.get("margin") not in (None, ""):
            made["margin"] = figure_of(row, "margin")
    tools = tools_of(row.get("tools"))
    return made if tools is None else {**made, "tools": tools}


def demonstration(row: Mapping[str, Any], name: str, system: str | None) -> dict[str, Any]:
    """`{"text": ...}` or `{"messages": [...]}` of a row in a language modelling format."""
    value = filled(row.get(name), name)
    if name == "text":
        return {"text": text_of(value, name)}
    messages = messages_of(parsed(value, name) if isinstance(value, str) else value, name)
    check_end(messages, name)
    return {"messages": with_system(messages, system)}


def prompt_of(row: Mapping[str, Any], system: str | None = None) -> str | Messages:
    """The prompt of a row; of a preference without one, the beginning that both answers share."""
    if row.get("chosen") and row.get("rejected"):
        prompt = answered(row, ["chosen", "rejected"], system)["prompt"]
    else:
        value = unwritten(filled(row.get("prompt"), "prompt"), "prompt")
        plain = isinstance(value, str)
        prompt = text_of(value, "prompt") if plain else with_system(messages_of(value, "prompt"), system)
    filled(prompt, "prompt")
    return prompt


def answered(
    row: Mapping[str, Any], names: list[str], system: str | None, words: bool = False
) -> dict[str, Any]:
    """Prompt and answers of a row, all plain or all conversations; the prompt once.

    Args:
        row: values by column.
        names: of its answers.
        system: put before conversations that have no system message.
        words: split plain answers without a prompt at the last blank that they share.
    """
    prompt = unwritten(row.get("prompt"), "prompt")
    answers = {name: unwritten(filled(row.get(name), name), name) for name in names}
    if not any(is_messages(value) for value in (prompt, *answers.values())):
        return plain(prompt, answers, words)
    asked = None if prompt in (None, "", []) else as_messages(prompt, "prompt", "user")
    given = {name: as_messages(value, name, "assistant") for name, value in answers.items()}
    if asked is None and len(given) == 1:
        raise BadRow("prompt is empty", "with an empty prompt")
    asked, given = split_prompt(asked, given)
    if not asked:
        raise BadRow("chosen and rejected share no first message, so there is no prompt", "without a prompt")
    for name, answer in given.items():
        check_end(answer, name)
    return {"prompt": with_system(asked, system), **given}


def plain(prompt: Any, answers: Mapping[str, Any], words: bool) -> dict[str, Any]:
    """Prompt and answers of plain text."""
    texts = {name: text_of(value, name) for name, value in answers.items()}
    if prompt is not None:
        return {"prompt": text_of(filled(prompt, "prompt"), "prompt"), **texts}
    if len(texts) == 1:
        raise BadRow("prompt is empty", "with an empty prompt")
    first, second = texts.values()
    cut = shared_prompt(first, second, words)
    return {"prompt": first[:cut], **{name: filled(text[cut:], name) for name, text in texts.items()}}


def as_messages(value: Any, name: str, role: str) -> Messages:
    """A conversation; plain text beside conversations is one turn of it."""
    return [{"role": role, "content": value}] if isinstance(value, str) else messages_of(value, name)


def text_of(value: Any, name: str) -> str:
    """The value, which is text; BadRow where it is not."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is {describe(value)}, expected text", wrong(name))
    return value


def check_end(messages: Messages, name: str) -> None:
    """BadRow if the last message says nothing."""
    last = messages[-1]
    if not (last["content"] or "").strip() and not last.get("tool_calls"):
        raise BadRow(f"{name} ends with an empty message", f"with an empty {name}")


def notes_of(row: Mapping[str, Any]) -> list[str]:
    """What is to be said of a row beside what is wrong with it."""
    written = [
        name for name in ("prompt", "messages", "conversations", *ANSWERS) if is_written(row.get(name))
    ]
    return [
        f"hold a conversation as JSON text in the column {name}; it is read as messages" for name in written
    ]
