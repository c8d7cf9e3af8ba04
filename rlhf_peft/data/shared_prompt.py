"""Finds the prompt that two answers share.

It is made of the messages before the answers in their conversations, or of the common beginning of their texts. Plain
text is always split at the last turn marker that both answers share (`Assistant:`, as in the HH dataset). At the last
blank that both share, as TRL does, it is split only where a prompt is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .conversation import THOUGHTS, Message, Messages
from .rows import BadRow

TURN = re.compile(r"\n\n(?:Assistant|### ?(?:Response|Assistant)):")


def split_prompt(
    prompt: Messages | None, answers: Mapping[str, Messages]
) -> tuple[Messages, dict[str, Messages]]:
    """Split conversations into prompt and answers.

    Answers may repeat the prompt before the answer; without a prompt column, the shared first messages are the
    prompt. Messages are compared by role, text and tool calls; ids and the like do not matter.

    Args:
        prompt: the column `prompt`, or None where the row has none.
        answers: conversations by the name of their column; without a prompt, two of them.

    Raises:
        BadRow: what is left of an answer does not begin with a message of the assistant, or the answers repeat
            different prompts.
    """
    if prompt is None:
        size = shared_turns(*answers.values())
        first = next(iter(answers.values()))
        return first[:size], {name: answer[size:] for name, answer in answers.items()}
    parts = {name: split_answer(prompt, answer, name) for name, answer in answers.items()}
    prompts = [repeated for repeated, _ in parts.values()]
    if not all(same_messages(repeated, prompts[0]) for repeated in prompts):
        raise BadRow(f"{' and '.join(parts)} repeat different prompts", "with answers to different prompts")
    return prompts[0], {name: rest for name, (_, rest) in parts.items()}


def shared_turns(first: Messages, second: Messages) -> int:
    """Number of first messages that two conversations share, such that each goes on with a message of the assistant."""
    longest = min(len(first), len(second)) - 1
    size = next(
        (index for index in range(longest) if not same_messages([first[index]], [second[index]])), longest
    )
    while size and not first[size]["role"] == second[size]["role"] == "assistant":
        size -= 1
    return size


def split_answer(prompt: Messages, answer: Messages, name: str) -> tuple[Messages, Messages]:
    """The prompt, with the messages that an answer has before it, and the messages of the answer that follow it."""
    systems = [turns[0] for turns in (prompt, answer) if turns[0]["role"] == "system"]
    prompt_part = prompt[1:] if prompt[0]["role"] == "system" and answer[0]["role"] != "system" else prompt
    for start in range(len(answer) - len(prompt_part)):
        end = start + len(prompt_part)
        if (
            prompt_part
            and answer[end]["role"] == "assistant"
            and same_messages(answer[start:end], prompt_part)
        ):
            prompt_turns = answer[:end]
            return ([prompt[0], *prompt_turns] if prompt_part is not prompt else prompt_turns), answer[end:]
    if answer[0]["role"] == "assistant":
        return prompt, answer
    differ = len(systems) == 2 and not same_messages(systems[:1], systems[1:])
    why = (
        "its system message is not the prompt's" if differ else "its first turns are not those of the prompt"
    )
    raise BadRow(
        f"{name} begins with the role {answer[0]['role']!r}, expected a turn of the assistant: {why}",
        f"with {name} that is not an answer",
        "Give the answer alone, or the prompt's own turns before it",
    )


def same_messages(ours: Messages, theirs: Messages) -> bool:
    """Whether two lists of messages are equal in role, text, tool calls and thoughts."""
    return [compared_values(message) for message in ours] == [compared_values(message) for message in theirs]


def compared_values(message: Message) -> list[Any]:
    """The values of a message by which two messages are compared; ids and the like are left out."""
    values = [message.get(key) for key in ("role", "content", "tool_calls", *THOUGHTS)]
    return [value.strip() if isinstance(value, str) else value for value in values]


def shared_prompt(chosen: str, rejected: str, words: bool) -> int:
    """Number of leading characters of two plain texts that are their prompt."""
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
    blank = max((index for index in range(shared) if chosen[index].isspace()), default=0)
    return blank if chosen[blank : blank + 1] == " " else blank + (blank > 0)
