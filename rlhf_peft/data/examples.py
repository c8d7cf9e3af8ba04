"""A row of a dataset as every stage reads it: the format's own columns in one form, the prompt apart.

`example` is the only way from a file's row to an encoder: prompts and answers are plain text, or all of them are
conversations in the form of `conversation`; tools are a list of schemas. What a row holds and no stage can read raises
`BadRow`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .calls import offered
from .checks import figure_of, filled, label_of, probability_of
from .conversation import Messages, describe, is_messages, messages_of, with_system, wrong
from .formats import Format
from .json_text import is_written, parsed, unwritten
from .rows import BadRow
from .shared import shared_prompt, split_prompt

ANSWERS = ("chosen", "rejected", "completion")
READ = ("prompt", "messages", "conversations", "text", *ANSWERS)
"""Columns that make a format."""


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
    if all(row.get(name) is None for name in format.columns):
        others = [name for name in READ if row.get(name) is not None]
        if others:
            raise BadRow(
                f"it holds {' and '.join(others)}, where other rows hold {' and '.join(format.columns)}",
                "of another format",
                "Write each format to a file of its own",
            )
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
    if not any(is_messages(value) for value in made.values()):
        check_plain(row, system)
    tools = offered(row)
    return made if tools is None else {**made, "tools": tools}


def demonstration(row: Mapping[str, Any], name: str, system: str | None) -> dict[str, Any]:
    """`{"text": ...}` or `{"messages": [...]}` of a row in a language modelling format."""
    value = filled(row.get(name), name)
    if name == "text":
        return {"text": text_of(value, name)}
    messages = messages_of(parsed(value, name) if isinstance(value, str) else value, name)
    check_end(messages, name)
    return {"messages": led(messages, row, system)}


def prompt_of(row: Mapping[str, Any], system: str | None = None) -> str | Messages:
    """The prompt of a row; of a preference without one, the beginning that both answers share."""
    if row.get("chosen") and row.get("rejected"):
        prompt = answered(row, ["chosen", "rejected"], system)["prompt"]
    else:
        value = unwritten(filled(row.get("prompt"), "prompt"), "prompt")
        plain = isinstance(value, str)
        prompt = text_of(value, "prompt") if plain else led(messages_of(value, "prompt"), row, system)
    filled(prompt, "prompt")
    if isinstance(prompt, str):
        check_plain(row, system)
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
    asked = None if blank(prompt) else as_messages(prompt, "prompt", "user")
    given = {name: as_messages(value, name, "assistant") for name, value in answers.items()}
    if asked is None and len(given) == 1:
        raise BadRow("prompt is empty", "with an empty prompt")
    asked, given = split_prompt(asked, given)
    if not asked:
        other = next((name for name in ("messages", "conversations") if not blank(row.get(name))), None)
        raise BadRow(
            "chosen and rejected share no first message, so there is no prompt",
            "without a prompt",
            *([f"Say which column holds it: dataset.columns={{prompt: {other}}}"] if other else []),
        )
    for name, answer in given.items():
        check_end(answer, name)
    return {"prompt": led(asked, row, system), **given}


def led(messages: Messages, row: Mapping[str, Any], system: str | None) -> Messages:
    """A conversation with the system message of its row's column `system`, or the given one, unless it has its own."""
    own = row.get("system")
    if blank(own):
        return with_system(messages, system)
    if not isinstance(own, str):
        raise BadRow(f"system is {describe(own)}, expected text", wrong("system"))
    if messages[0]["role"] == "system" and (messages[0]["content"] or "").strip() != own.strip():
        raise BadRow(
            "the column system holds another system message than the conversation", "with two system messages"
        )
    return with_system(messages, own)


def check_plain(row: Mapping[str, Any], system: str | None) -> None:
    """BadRow where a row of plain text holds, or is to be given, what only a chat template could write."""
    for name in ("system", "tools", "functions"):
        if not blank(row.get(name)):
            raise BadRow(
                f"the column {name} stands beside plain text, which has no place for it",
                f"of plain text with {name}",
                "Write the row as messages, join texts (dataset.columns={prompt: [system, prompt]}), or give the "
                f"column another name (dataset.columns={{unread: {name}}})",
            )
    if system is not None:
        raise BadRow(
            "dataset.system is given, and the row is plain text, which has no place for it",
            "of plain text",
            "Write the row as messages",
        )


def blank(value: Any) -> bool:
    """Whether a value says nothing."""
    return value in (None, []) or (isinstance(value, str) and not value.strip())


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
    columns = ("prompt", "messages", "conversations", *ANSWERS)
    written = [name for name in columns if is_written(row.get(name))]
    notes = [
        f"hold a conversation as JSON text in the column {name}; it is read as messages" for name in written
    ]
    if is_written(row.get("text")) and not any(name in row for name in columns):
        notes.append(
            "hold a conversation as JSON text in the column text, where it is trained on as it stands; rename the "
            "column to messages for the chat template to write it"
        )
    if blank(row.get("system")):
        return notes
    return [*notes, "hold a system message in the column system; it stands before the conversation"]
