"""Writes a Modelfile for Ollama, with the chat template in Ollama's language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..engine import SharedBase

Message = dict[str, str]
SYSTEM, USER, ASSISTANT, AGAIN = "\x01", "\x02", "\x03", "\x04"
"""Stand for the contents of messages, in conversations that a template is tried on."""
CONTEXT = 8192
"""Tokens of context that Ollama reserves memory for, where the model has as many."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """The texts that a chat template writes around messages, if it writes them one after the other.

    Attributes:
        opening: text at the beginning where there is no system message.
        system: texts before and after a system message; None: there can be none.
        user: texts before and after a user's message.
        assistant: texts before and after an answer.
        ask: text after which the model's answer begins.
    """

    opening: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    ask: str

    def render(self, messages: Sequence[Message]) -> str:
        """The text that the template would write for messages, up to where the answer begins."""
        around = {"system": self.system or ("", ""), "user": self.user, "assistant": self.assistant}
        texts = [f"{around[m['role']][0]}{m['content']}{around[m['role']][1]}" for m in messages]
        opening = "" if messages[0]["role"] == "system" else self.opening
        return "".join([opening, *texts, self.ask])

    def ollama(self) -> str:
        """The template in Ollama's language."""
        roles = {"system": self.system, "user": self.user, "assistant": self.assistant}
        cases = [
            f'{{{{ if eq .Role "{role}" }}}}{around[0]}{{{{ .Content }}}}{around[1]}{{{{ end }}}}'
            for role, around in roles.items()
            if around is not None
        ]
        opening = f"{{{{ if not .System }}}}{self.opening}{{{{ end }}}}" if self.opening else ""
        return f"{opening}{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{self.ask}"


def modelfile(tokenizer: Any, base: SharedBase, trained_length: int | None = None) -> str:
    """The text of a Modelfile, with the chat template in Ollama's language where that is possible.

    Args:
        tokenizer: of the weights.
        base: the base that the weights were merged into.
        trained_length: longest row of the training in tokens; None: the model's own context.
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
    """The pieces of a chat template, found by applying it to messages; None where it is not made of such pieces."""
    user, again = {"role": "user", "content": USER}, {"role": "user", "content": AGAIN}
    assistant, system = {"role": "assistant", "content": ASSISTANT}, {"role": "system", "content": SYSTEM}
    user_only, with_ask = _written(tokenizer, [user]), _written(tokenizer, [user], ask=True)
    answered, followed_up = (
        _written(tokenizer, [user, assistant]),
        _written(tokenizer, [user, assistant, again]),
    )
    if None in (user_only, with_ask, answered, followed_up):
        return None
    assert user_only is not None and with_ask is not None and answered is not None and followed_up is not None
    if (
        any(text.count(USER) != 1 for text in (user_only, with_ask, answered, followed_up))
        or followed_up.count(AGAIN) != 1
    ):
        return None
    before, _, after = user_only.partition(USER)
    if (
        not with_ask.startswith(user_only)
        or not answered.startswith(user_only)
        or answered.count(ASSISTANT) != 1
    ):
        return None
    opens, _, closes = answered.removeprefix(user_only).partition(ASSISTANT)
    between = followed_up.partition(ASSISTANT)[2].partition(AGAIN)[0]
    if not between.startswith(closes):
        return None
    user_mark = between.removeprefix(closes)
    if not before.endswith(user_mark):
        return None
    pieces = Pieces(
        before.removesuffix(user_mark),
        None,
        (user_mark, after),
        (opens, closes),
        with_ask.removeprefix(user_only),
    )
    with_system = _written(tokenizer, [system, user])
    if with_system is not None and with_system.count(SYSTEM) == 1 and with_system.count(USER) == 1:
        lead, _, rest = with_system.partition(SYSTEM)
        gap = rest.partition(USER)[0]
        if gap.endswith(user_mark):
            around = (lead, gap.removesuffix(user_mark))
            pieces = Pieces(pieces.opening, around, pieces.user, pieces.assistant, pieces.ask)
    tries = [[user], [user, assistant, again], *([[system, user, assistant, again]] if pieces.system else [])]
    right = all(pieces.render(messages) == _written(tokenizer, messages, ask=True) for messages in tries)
    return pieces if right and "{{" not in pieces.render(tries[-1]) else None


def _written(tokenizer: Any, messages: list[Message], ask: bool = False) -> str | None:
    """The text that the template makes of messages, or None where it refuses them.

    A token that the tokenizer itself puts first is left out.
    """
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except TemplateError:
        return None
    return str(text).removeprefix(added_start(tokenizer))


def added_start(tokenizer: Any) -> str:
    """The token that the tokenizer itself puts before every text, as Ollama does; empty where there is none."""
    ids = tokenizer("a")["input_ids"]
    begins = bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    return str(tokenizer.bos_token) if begins else ""
