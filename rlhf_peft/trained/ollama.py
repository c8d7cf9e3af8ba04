"""A Modelfile, chat template included."""

from __future__ import annotations

from typing import Any

from ..engine import SharedBase

SYSTEM, USER, ASSISTANT = "\x01", "\x02", "\x03"
"""Stand for what the three say, in a conversation that a template is tried on."""


def modelfile(tokenizer: Any, base: SharedBase) -> str:
    """A Modelfile for the weights beside it, with the chat template in Ollama's language where it can be."""
    lines = ["FROM .", ""]
    template = ollama_template(tokenizer)
    if template is not None:
        lines += [f'TEMPLATE """{template}"""', ""]
    for token in sorted({tokenizer.convert_ids_to_tokens(i) for i in base.eos_ids}):
        lines.append(f'PARAMETER stop "{token}"')
    lines.append(f"PARAMETER num_ctx {base.max_length}")
    return "\n".join(lines) + "\n"


def ollama_template(tokenizer: Any) -> str | None:
    """The chat template in Ollama's language, found by what it writes around messages; None where that cannot be."""
    if not tokenizer.chat_template:
        return None
    user, said = {"role": "user", "content": USER}, {"role": "assistant", "content": ASSISTANT}
    asked = _written(tokenizer, [user], ask=True)
    # Some templates refuse a system message.
    text = _written(tokenizer, [{"role": "system", "content": SYSTEM}, user, said]) or _written(
        tokenizer, [user, said]
    )
    if (
        asked is None
        or text is None
        or asked.count(USER) != 1
        or any(text.count(m) != 1 for m in (USER, ASSISTANT))
    ):
        return None
    before_user, _, opening = asked.partition(USER)
    after = text.partition(ASSISTANT)[2]
    parts = []
    if text.count(SYSTEM) == 1:
        before, _, rest = text.partition(SYSTEM)
        between = rest.partition(USER)[0]
        user_mark = before_user if between.endswith(before_user) else between
        parts.append(
            f"{{{{ if .System }}}}{before}{{{{ .System }}}}{between.removesuffix(user_mark)}{{{{ end }}}}"
        )
    parts.append(f"{before_user}{{{{ .Prompt }}}}{opening}{{{{ .Response }}}}{after}")
    return "".join(parts)


def _written(tokenizer: Any, messages: list[dict[str, str]], ask: bool = False) -> str | None:
    """What the template makes of messages, without the token that begins a text; None where it refuses them."""
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except TemplateError:
        return None
    return str(text).removeprefix(tokenizer.bos_token or "")
