"""Views: protocols of the objects that plugins are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..types import (
    Rollout,
    SamplingParams,
)


class TokenDecoder(Protocol):
    """Decodes a batch of rows, one token for each row in a step.

    Attributes:
        logits: [B, V], of the next token of every row; at the beginning, of the first one after its prompt.
    """

    logits: Tensor

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row, [B] int64; returns the logits [B, V] after it."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows alone: [B'] int64, their numbers among the current rows."""
        ...

    def should_compact(self, going: int, rows: int) -> bool:
        """Whether it is faster to `keep` only the `going` rows that have not ended, out of the current `rows`."""
        ...


class DecodingModel(Protocol):
    """The policy, ready to decode; it is valid only inside the context of `PolicyView.decoding`.

    Attributes:
        lm: a transformers causal LM in eval mode, ready for `forward(input_ids, attention_mask, position_ids)` and for
            `generate`. On a CPU it has dense merged weights where memory allows. Else, and on a GPU for models of
            Llama's shape, it is the quantized base with its adapter.
    """

    @property
    def lm(self) -> nn.Module:
        """The causal LM."""
        ...

    @property
    def can_start(self) -> bool:
        """Whether `start` works: whether the model's only state is a cache of keys and values."""
        ...

    def start(self, prompts: Sequence[Sequence[int]], room: int) -> TokenDecoder:
        """Read the prompts, and return a decoder that appends tokens to them.

        Args:
            prompts: B rows of token ids; equal ones are read once.
            room: most tokens that are appended to a row.
        """
        ...


class PolicyView(Protocol):
    """The policy as a sampler sees it.

    Attributes:
        device: of the model.
        pad_id: token id of padding; it may be an EOS too.
        eos_ids: tokens that end a completion.
        max_length: longest row in tokens, prompt included.
        vocab_size: number of tokens.
    """

    device: torch.device
    pad_id: int
    eos_ids: frozenset[int]
    max_length: int
    vocab_size: int

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special tokens."""
        ...

    def decoding(self) -> AbstractContextManager[DecodingModel]:
        """The policy, ready to decode inside the context."""
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the policy's adapter in PEFT's format, for samplers that run elsewhere."""
        ...


class RunView(Protocol):
    """A run as an observer sees it."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]


class Prompt(Protocol):
    """One row of the prompt dataset, encoded."""

    @property
    def ids(self) -> Tensor:
        """The token ids, [P] int64, without padding."""
        ...

    @property
    def columns(self) -> Mapping[str, Any]:
        """The columns of the dataset's row, `prompt` included."""
        ...

    @property
    def index(self) -> int:
        """Number of the row, counted from 0."""
        ...


class RequestContext(Protocol):
    """The context of a call to `Algorithm.requests`."""

    params: SamplingParams

    @property
    def round(self) -> int:
        """The round of a step: 0 for its first prompts, then one more for each time more prompts are drawn."""
        ...

    def seed(self, group: int, sample: int) -> int:
        """The seed of the `sample`-th completion of the `group`-th prompt of this round."""
        ...


class SampleContext(Protocol):
    """What a sampler may request from the stage while it samples."""

    def score(self, rollout: Rollout) -> Tensor:
        """The weighted sum of the stage's rewards on these rows, [N] float32; NaN where all rewards abstained."""
        ...
