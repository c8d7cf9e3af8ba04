"""Brings a row of a dataset into the form that every stage reads: the columns of its format, with the prompt separate.

`example` is the only way from a row of a file to an encoder. Prompts and answers are plain text, or all of them are
conversations in the standard form of the module `conversation`; tools are a list of schemas. A row that no stage can
read raises `BadRow`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .calls import tools_in_row
from .checks import label_of, number_of, probability_of, required
from .conversation import Messages, describe, is_messages, messages_of, with_system, wrong
from .formats import Format
from .json_text import decode_conversation, is_conversation_json, parse_column
from .rows import BadRow
from .shared_prompt import shared_prompt, split_prompt

ANSWERS = ("chosen", "rejected", "completion")
READ = ("prompt", "messages", "conversations", "text", *ANSWERS)
"""Columns that decide the format of a row."""


def example(
    row: Mapping[str, Any], format: Format, *, system: str | None = None, words: bool = False
) -> dict[str, Any]:
    """The columns of a format, checked and in the standard form; `tools` where the row has any.

    A preference keeps `chosen_prob`, the probability that the chosen answer is the better one, and `margin`, by how
    much.

    Args:
        row: values by column.
        format: format of the dataset.
        system: system message to put before conversations that have none.
        words: split plain answers without a prompt at the last blank that both share, as TRL does; if False, such a
            row has an empty prompt.

    Raises:
        BadRow: a value is empty or of the wrong type, a role is unknown, an answer does not come from the
            assistant, or chosen and rejected are the same.
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
        values = demonstration(row, format.columns[0], system)
    elif format.kind == "prompt_only":
        values = {"prompt": prompt_of(row, system)}
    else:
        names = [name for name in ANSWERS if name in format.columns]
        values = prompt_and_answers(row, names, system, words)
    if "label" in format.columns:
        values["label"] = label_of(row["label"])
    if format.kind == "preference":
        if values["chosen"] == values["rejected"]:
            raise BadRow("chosen and rejected are the same", "with chosen equal to rejected")
        if row.get("chosen_prob") not in (None, ""):
            values["chosen_prob"] = probability_of(row)
        if row.get("margin") not in (None, ""):
            values["margin"] = number_of(row, "margin")
    if not any(is_messages(value) for value in values.values()):
        check_plain(row, system)
    tools = tools_in_row(row)
    return values if tools is None else {**values, "tools": tools}


def demonstration(row: Mapping[str, Any], name: str, system: str | None) -> dict[str, Any]:
    """`{"text": ...}` or `{"messages": [...]}` of a row in a language modelling format."""
    value = required(row.get(name), name)
    if name == "text":
        return {"text": text_of(value, name)}
    messages = messages_of(parse_column(value, name) if isinstance(value, str) else value, name)
    check_end(messages, name)
    return {"messages": with_row_system(messages, row, system)}


def prompt_of(row: Mapping[str, Any], system: str | None = None) -> str | Messages:
    """The prompt of a row; for a preference without a prompt, the beginning that both answers share."""
    if row.get("chosen") and row.get("rejected"):
        prompt = prompt_and_answers(row, ["chosen", "rejected"], system)["prompt"]
    else:
        value = decode_conversation(required(row.get("prompt"), "prompt"), "prompt")
        plain = isinstance(value, str)
        prompt = (
            text_of(value, "prompt") if plain else with_row_system(messages_of(value, "prompt"), row, system)
        )
    required(prompt, "prompt")
    if isinstance(prompt, str):
        check_plain(row, system)
    return prompt


def prompt_and_answers(
    row: Mapping[str, Any], names: list[str], system: str | None, words: bool = False
) -> dict[str, Any]:
    """Prompt and answers of a row, all plain text or all conversations; the prompt is not repeated in the answers.

    Args:
        row: values by column.
        names: columns of its answers.
        system: system message to put before conversations that have none.
        words: split plain answers without a prompt at the last blank that both share.
    """
    prompt = decode_conversation(row.get("prompt"), "prompt")
    answers = {name: decode_conversation(required(row.get(name), name), name) for name in names}
    if not any(is_messages(value) for value in (prompt, *answers.values())):
        return plain_answers(prompt, answers, words)
    prompt_messages = None if is_blank(prompt) else as_messages(prompt, "prompt", "user")
    answer_messages = {name: as_messages(value, name, "assistant") for name, value in answers.items()}
    if prompt_messages is None and len(answer_messages) == 1:
        raise BadRow("prompt is empty", "with an empty prompt")
    prompt_messages, answer_messages = split_prompt(prompt_messages, answer_messages)
    if not prompt_messages:
        other = next((name for name in ("messages", "conversations") if not is_blank(row.get(name))), None)
        raise BadRow(
            "chosen and rejected share no first message, so there is no prompt",
            "without a prompt",
            *([f"Say which column holds it: dataset.columns={{prompt: {other}}}"] if other else []),
        )
    for name, answer in answer_messages.items():
        check_end(answer, name)
    return {"prompt": with_row_system(prompt_messages, row, system), **answer_messages}


def with_row_system(messages: Messages, row: Mapping[str, Any], system: str | None) -> Messages:
    """A conversation with a system message: its own, else that of the column `system`, else the argument `system`.

    Raises:
        BadRow: the column holds another system message than the conversation, or no text.
    """
    row_system = row.get("system")
    if is_blank(row_system):
        return with_system(messages, system)
    if not isinstance(row_system, str):
        raise BadRow(f"system is {describe(row_system)}, expected text", wrong("system"))
    if messages[0]["role"] == "system" and (messages[0]["content"] or "").strip() != row_system.strip():
        raise BadRow(
            "the column system holds another system message than the conversation", "with two system messages"
        )
    return with_system(messages, row_system)


def check_plain(row: Mapping[str, Any], system: str | None) -> None:
    """Raise BadRow if a row of plain text has columns or a system message that only a chat template can write."""
    for name in ("system", "tools", "functions"):
        if not is_blank(row.get(name)):
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


def is_blank(value: Any) -> bool:
    """Whether a value is None, an empty list or blank text."""
    return value in (None, []) or (isinstance(value, str) and not value.strip())


def plain_answers(prompt: Any, answers: Mapping[str, Any], words: bool) -> dict[str, Any]:
    """Prompt and answers of a row of plain text."""
    texts = {name: text_of(value, name) for name, value in answers.items()}
    if prompt is not None:
        return {"prompt": text_of(required(prompt, "prompt"), "prompt"), **texts}
    if len(texts) == 1:
        raise BadRow("prompt is empty", "with an empty prompt")
    first, second = texts.values()
    cut = shared_prompt(first, second, words)
    return {"prompt": first[:cut], **{name: required(text[cut:], name) for name, text in texts.items()}}


def as_messages(value: Any, name: str, role: str) -> Messages:
    """A value as a conversation; plain text becomes one message with this role."""
    return [{"role": role, "content": value}] if isinstance(value, str) else messages_of(value, name)


def text_of(value: Any, name: str) -> str:
    """The value; raises BadRow if it is not text."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is {describe(value)}, expected text", wrong(name))
    return value


def check_end(messages: Messages, name: str) -> None:
    """Raise BadRow if the last message has neither text nor tool calls."""
    last = messages[-1]
    if not (last["content"] or "").strip() and not last.get("tool_calls"):
        raise BadRow(f"{name} ends with an empty message", f"with an empty {name}")


def notes_of(row: Mapping[str, Any]) -> list[str]:
    """Remarks on a row that are no errors, such as a conversation stored as JSON text."""
    columns = ("prompt", "messages", "conversations", *ANSWERS)
    json_columns = [name for name in columns if is_conversation_json(row.get(name))]
    notes = [
        f"hold a conversation as JSON text in the column {name}; it is read as messages"
        for name in json_columns
    ]
    if is_conversation_json(row.get("text")) and not any(name in row for name in columns):
        notes.append(
            "hold a conversation as JSON text in the column text, where it is trained on as it stands; rename the "
            "column to messages for the chat template to write it"
        )
    if is_blank(row.get("system")):
        return notes
    return [*notes, "hold a system message in the column system; it stands before the conversation"]
