"""A Modelfile, chat template included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..engine import SharedBase

Message = dict[str, str]
SYSTEM, USER, ASSISTANT, AGAIN = "\x01", "\x02", "\x03", "\x04"
"""Stand for what is said, in conversations that a template is tried on."""
CONTEXT = 8192
"""Tokens of context that Ollama sets memory aside for, where the model takes as many."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a chat template writes around messages that it sets one after the other.

    Attributes:
        opening: where there is no system message.
        system: before and after a system message; None: there can be none.
        user: before and after a user's.
        assistant: before and after an answer.
        ask: where an answer is to begin.
    """

    opening: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    ask: str

    def render(self, messages: Sequence[Message]) -> str:
        """What the template would write, ready for an answer."""
        around = {"system": self.system or ("", ""), "user": self.user, "assistant": self.assistant}
        said = [f"{around[m['role']][0]}{m['content']}{around[m['role']][1]}" for m in messages]
        opening = "" if messages[0]["role"] == "system" else self.opening
        return "".join([opening, *said, self.ask])

    def ollama(self) -> str:
        """In Ollama's language."""
        roles = {"system": self.system, "user": self.user, "assistant": self.assistant}
        cases = [
            f'{{{{ if eq .Role "{role}" }}}}{around[0]}{{{{ .Content }}}}{around[1]}{{{{ end }}}}'
            for role, around in roles.items()
            if around is not None
        ]
        opening = f"{{{{ if not .System }}}}{self.opening}{{{{ end }}}}" if self.opening else ""
        return f"{opening}{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{self.ask}"


def modelfile(tokenizer: Any, base: SharedBase, trained_length: int | None = None) -> str:
    """A Modelfile for the weights beside it, with the chat template in Ollama's language where it can be.

    Args:
        tokenizer: of the weights.
        base: that they were made of.
        trained_length: longest row of the training; None: the model's own context.

    Returns:
        Its text.
    """
    lines = ["FROM .", ""]
    if tokenizer.chat_template:
        pieces = pieces_of(tokenizer)
        if pieces is None:
            lines += [
                "# The chat template cannot be put into Ollama's language; see chat_template.jinja.",
                "",
            ]
        else:
            lines += [f'TEMPLATE """{pieces.ollama()}"""', ""]
    for token in sorted({tokenizer.convert_ids_to_tokens(i) for i in base.eos_ids}):
        lines.append(f'PARAMETER stop "{token}"')
    lines.append(f"PARAMETER num_ctx {max(min(base.loaded.context_length, CONTEXT), trained_length or 0)}")
    return "\n".join(lines) + "\n"


def pieces_of(tokenizer: Any) -> Pieces | None:
    """The pieces of a chat template, found by trying it; None where it writes anything else."""
    user, again = {"role": "user", "content": USER}, {"role": "user", "content": AGAIN}
    said, system = {"role": "assistant", "content": ASSISTANT}, {"role": "system", "content": SYSTEM}
    first, asked = _written(tokenizer, [user]), _written(tokenizer, [user], ask=True)
    whole, more = _written(tokenizer, [user, said]), _written(tokenizer, [user, said, again])
    if None in (first, asked, whole, more):
        return None
    assert first is not None and asked is not None and whole is not None and more is not None
    if any(text.count(USER) != 1 for text in (first, asked, whole, more)) or more.count(AGAIN) != 1:
        return None
    before, _, after = first.partition(USER)
    if not asked.startswith(first) or not whole.startswith(first) or whole.count(ASSISTANT) != 1:
        return None
    opens, _, closes = whole.removeprefix(first).partition(ASSISTANT)
    between = more.partition(ASSISTANT)[2].partition(AGAIN)[0]
    if not between.startswith(closes):
        return None
    user_mark = between.removeprefix(closes)
    if not before.endswith(user_mark):
        return None
    pieces = Pieces(
        before.removesuffix(user_mark), None, (user_mark, after), (opens, closes), asked.removeprefix(first)
    )
    told = _written(tokenizer, [system, user])
    if told is not None and told.count(SYSTEM) == 1 and told.count(USER) == 1:
        lead, _, rest = told.partition(SYSTEM)
        gap = rest.partition(USER)[0]
        if gap.endswith(user_mark):
            around = (lead, gap.removesuffix(user_mark))
            pieces = Pieces(pieces.opening, around, pieces.user, pieces.assistant, pieces.ask)
    tries = [[user], [user, said, again], *([[system, user, said, again]] if pieces.system else [])]
    right = all(pieces.render(messages) == _written(tokenizer, messages, ask=True) for messages in tries)
    return pieces if right and "{{" not in pieces.render(tries[-1]) else None


def _written(tokenizer: Any, messages: list[Message], ask: bool = False) -> str | None:
    """What the template makes of messages, without a token that the tokenizer puts first by itself; None: refused."""
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except TemplateError:
        return None
    return str(text).removeprefix(added_start(tokenizer))


def added_start(tokenizer: Any) -> str:
    """The token that the tokenizer itself puts before every text, as Ollama does; empty: it puts none."""
    ids = tokenizer("a")["input_ids"]
    begins = bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    return str(tokenizer.bos_token) if begins else ""
