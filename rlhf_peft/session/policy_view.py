"""The policy as samplers see it, and the seeds of a stage's completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ..engine import SharedBase
from ..engine.decoding import DecodingModel
from ..types import SamplingParams
from .ranks import Ranks


class BaseView:
    """`PolicyView` over a role of the shared base."""

    def __init__(self, base: SharedBase, role: str = "policy") -> None:
        self._base, self._role = base, role
        self.device = base.device
        self.pad_id = int(base.tokenizer.pad_token_id)
        self.eos_ids = base.eos_ids
        self.max_length = base.max_length
        self.vocab_size = base.vocab_size

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some tokens, special tokens left out."""
        text: str = self._base.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def decoding(self) -> AbstractContextManager[DecodingModel]:
        """The causal LM as this role, ready to decode."""
        return self._base.decoding.as_role(self._role)

    def save_adapter(self, folder: Path) -> None:
        """Write the role's adapter in PEFT's format; one that changes nothing where the role is the raw base."""
        if self._base.roles.adapter_of(self._role) is None:
            self._base.roles.save_zero(folder)
        else:
            self._base.roles.save(self._role, folder)


class SeededContext:
    """`RequestContext` of one step: each completion has a seed of its own."""

    def __init__(
        self,
        params: SamplingParams,
        seed: Callable[..., int],
        step: int,
        round: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        self.params, self.round = params, round
        self._seed, self._step, self._ranks = seed, step, ranks or Ranks()

    def seed(self, group: int, sample: int) -> int:
        """The seed of the `sample`-th completion of the `group`-th prompt of this round."""
        later = ("round", self.round) if self.round else ()
        among_all = group * self._ranks.world + self._ranks.rank
        return self._seed("rollout", self._step, *later, among_all, sample)
