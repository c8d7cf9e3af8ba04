"""The prompt that answers share: what stands before them in their own conversations, or in their texts.

Plain text is split in two ways: at the last turn that both answers share (`Assistant:`, as in HH), always; at the last
blank that both share (as TRL does), only where a prompt is needed.
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
