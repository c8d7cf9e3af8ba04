"""What ends an answer: one notion for training, every sampler, evaluation, chat and exports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .templates import TemplateRefused, render


def end_ids(
    tokenizer: Any, generation_config: Any = None, template_kwargs: Mapping[str, Any] | None = None
) -> frozenset[int]:
    """Every id that ends an answer.

    These are the tokenizer's EOS, the ids that the generation config lists, and the token with which the chat template
    ends an assistant's turn (`<|im_end|>` of a Qwen base model, whose EOS is `<|endoftext|>`).

    Args:
        tokenizer: a transformers tokenizer.
        generation_config: of the model; None: not known.
        template_kwargs: passed to the chat template.
    """
    listed: Any = getattr(generation_config, "eos_token_id", None)
    listed = listed if isinstance(listed, list | tuple) else [listed]
    ends: list[Any] = [tokenizer.eos_token_id, turn_end(tokenizer, template_kwargs or {}), *listed]
    return frozenset(int(end) for end in ends if end is not None)


def turn_end(tokenizer: Any, template_kwargs: Mapping[str, Any]) -> int | None:
    """The token with which the chat template ends an assistant's turn; None where that is plain text, or nothing."""
    if not tokenizer.chat_template:
        return None
    talk = [{"role": "user", "content": "zqaskqz"}, {"role": "assistant", "content": "zqsayqz"}]
    try:
        text = render(tokenizer, talk, **template_kwargs)
    except TemplateRefused:  # rows will say so
        return None
    _, mark, rest = text.rpartition("zqsayqz")
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if mark else []
    added = {*getattr(tokenizer, "added_tokens_decoder", {}), *tokenizer.all_special_ids}
    first = next((i for i in ids if tokenizer.decode([i]).strip()), None)
    return int(first) if first is not None and first in added else None
