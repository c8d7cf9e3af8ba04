"""Chat with a trained run: encode a conversation, stream a role's answer, and score it with the reward heads."""

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
class ChatSettings:
    """How conversations are encoded and answers sampled.

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
    """A streamer for transformers' `generate`: passes text on as soon as its letters are complete.

    Args:
        tokenizer: decodes the tokens.
        on_text: is called with each piece of text.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._ids: list[int] = []
        self._length = 0  # of the text that was passed on
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take token ids: first the prompt's, which are ignored, then those of the answer."""
        if self._prompt:
            self._prompt = False
            return
        self._ids += value.flatten().tolist()
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        # A letter may be made of several tokens; half of one decodes to this mark.
        complete = len(text.rstrip("\ufffd"))
        if complete > self._length:
            self._on_text(text[self._length : complete])
            self._length = complete

    def end(self) -> None:
        """Pass on the rest of the text."""
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if len(text) > self._length:
            self._on_text(text[self._length :])

    @property
    def ids(self) -> list[int]:
        """Tokens of the answer so far."""
        return list(self._ids)


def encode(base: SharedBase, messages: Sequence[Message], settings: ChatSettings) -> list[int]:
    """Token ids of a conversation with the beginning of an answer; without a chat template, its texts joined.

    Raises:
        UsageError: the chat template refuses it, or no room is left for an answer.
    """
    encoder = Encoder(
        base.tokenizer,
        chat_template_kwargs=settings.template,
        system=settings.system,
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
    settings: ChatSettings,
    role: str = POLICY,
    on_text: Callable[[str], None] = lambda text: None,
) -> list[int]:
    """Sample an answer; returns its token ids, and passes its text on while it is sampled.

    Args:
        base: of the run.
        ids: of the conversation.
        settings: how the answer is sampled.
        role: that answers.
        on_text: is called with each piece of text.
    """
    from transformers import GenerationConfig  # slow to import

    prompt = torch.tensor([list(ids)], device=base.device)
    most = min(settings.max_new_tokens, base.max_length - prompt.shape[1])
    streamer = Streamer(base.tokenizer, on_text)
    temperature = settings.temperature
    config = GenerationConfig(
        max_new_tokens=most,
        pad_token_id=base.tokenizer.pad_token_id,
        eos_token_id=sorted(base.eos_ids),
        do_sample=temperature > 0,
        **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
    )
    with (
        torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []),
        base.decoding.as_role(role) as decoding,
        generation_config(
            decoding.lm, config
        ),  # the model's own may hold penalties that training did not use
    ):
        torch.manual_seed(settings.seed)
        decoding.lm.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), streamer=streamer)
    return streamer.ids


@torch.no_grad()
def scores(opened: Opened, ids: Sequence[int]) -> dict[str, float]:
    """The score of each reward head for a conversation with its answer, by the name of the role."""
    base, by_role = opened.base, {}
    row = torch.tensor([list(ids)], device=base.device)
    for name in opened.rewards:
        with base.role(name, train=False):
            by_role[name] = float(
                base.forwards.rewards(base.forwards.hidden(row), torch.tensor([row.shape[1]]), name)
            )
    return by_role
