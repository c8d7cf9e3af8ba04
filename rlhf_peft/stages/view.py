"""The policy as samplers see it, and the seeds of a stage's completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..engine import SharedBase
from ..types import SamplingParams


class BaseView:
    """`PolicyView` over a role of the shared base."""

    def __init__(self, base: SharedBase, role: str = "policy") -> None:
        self._base, self._role = base, role
        self.device = base.device
        self.pad_id = int(base.tokenizer.pad_token_id)
        self.eos_ids = base.eos_ids
        self.max_length = base.max_length

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some tokens, special tokens left out."""
        text: str = self._base.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def decoder(self) -> AbstractContextManager[Any]:
        """The causal LM as this role, ready to decode."""
        return self._base.decoder(self._role)


class SeededContext:
    """`RequestContext` of one iteration: each completion has a seed of its own."""

    def __init__(self, params: SamplingParams, seed: Callable[..., int], step: int) -> None:
        self.params = params
        self._seed, self._step = seed, step

    def seed(self, group: int, sample: int) -> int:
        """The seed of the `sample`-th completion of the `group`-th prompt of this iteration."""
        return self._seed("rollout", self._step, group, sample)
