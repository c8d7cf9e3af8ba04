"""Answers of a trained policy, as they are written; and of the reference beside it, and what the rewards say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..builtin.samplers.hf import generation_config
from ..data import Encoder
from ..data.rows import BadRow
from ..engine import POLICY, SharedBase
from ..errors import UsageError
from .opened import Opened

Message = dict[str, str]


@dataclass
class Talk:
    """How answers are drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        seed: of each answer.
        max_new_tokens: most tokens of an answer.
        system: first message, where the tokenizer has a chat template.
        template: arguments of the chat template, as the recipe has them.
    """

    temperature: float = 1.0
    seed: int = 0
    max_new_tokens: int = 512
    system: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)


class Streamer:
    """Hands text on as soon as it is sure: transformers' way of giving tokens one by one.

    Args:
        tokenizer: decodes.
        told: is called with each piece.
    """

    def __init__(self, tokenizer: Any, told: Callable[[str], None]) -> None:
        self._tokenizer, self._told = tokenizer, told
        self._ids: list[int] = []
        self._said = 0
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        """The prompt, then each token."""
        if self._prompt:
            self._prompt = False
            return
        self._ids += value.flatten().tolist()
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        # A letter may be made of several tokens; half of one decodes to this mark.
        sure = len(text.rstrip("\ufffd"))
        if sure > self._said:
            self._told(text[self._said : sure])
            self._said = sure

    def end(self) -> None:
        """What is left."""
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if len(text) > self._said:
            self._told(text[self._said :])

    @property
    def ids(self) -> list[int]:
        """Tokens so far."""
        return list(self._ids)


def encode(base: SharedBase, messages: Sequence[Message], talk: Talk) -> list[int]:
    """Ids of a conversation, ready for an answer; without a chat template, its texts one after the other.

    Raises:
        UsageError: the chat template refuses it, or no room is left for an answer.
    """
    encoder = Encoder(
        base.tokenizer,
        chat_template_kwargs=talk.template,
        system=talk.system,
        max_length=base.max_length,
        eos_ids=base.eos_ids,
        vocab_size=base.vocab_size,
    )
    plain = "".join(message["content"] for message in messages)
    try:
        ids = encoder.prompt({"prompt": list(messages) if base.tokenizer.chat_template else plain})
    except BadRow as problem:
        raise UsageError(f"the conversation cannot be put to the model: {problem}.") from problem
    if len(ids) >= base.max_length:
        raise UsageError(
            f"the conversation has {len(ids):,} tokens, and the model reads {base.max_length:,}. Say /new."
        )
    return ids


def answer(
    base: SharedBase,
    ids: Sequence[int],
    talk: Talk,
    role: str = POLICY,
    told: Callable[[str], None] = lambda text: None,
) -> list[int]:
    """Tokens of an answer; its text is told as it is written.

    Args:
        base: of the run.
        ids: of the conversation.
        talk: how it is drawn.
        role: who answers.
        told: is called with each piece of text.
    """
    from transformers import GenerationConfig  # slow to import

    given = torch.tensor([list(ids)], device=base.device)
    room = min(talk.max_new_tokens, base.max_length - given.shape[1])
    streamer = Streamer(base.tokenizer, told)
    how = GenerationConfig(
        max_new_tokens=room,
        pad_token_id=base.tokenizer.pad_token_id,
        eos_token_id=sorted(base.eos_ids),
        do_sample=talk.temperature > 0,
        **({"temperature": talk.temperature, "top_k": 0, "top_p": 1.0} if talk.temperature > 0 else {}),
    )
    with (
        torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []),
        base.decoding.decoder(role) as model,
        generation_config(model, how),  # the model's own may hold penalties that training knew nothing of
    ):
        torch.manual_seed(talk.seed)
        model.generate(input_ids=given, attention_mask=torch.ones_like(given), streamer=streamer)
    return streamer.ids


@torch.no_grad()
def scores(opened: Opened, ids: Sequence[int]) -> dict[str, float]:
    """What each reward head says of a conversation with its answer."""
    base, found = opened.base, {}
    row = torch.tensor([list(ids)], device=base.device)
    for name in opened.rewards:
        with base.role(name, train=False):
            found[name] = float(
                base.forwards.rewards(base.forwards.hidden(row), torch.tensor([row.shape[1]]), name)
            )
    return found
