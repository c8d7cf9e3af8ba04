"""Wraps another sampler: draws n completions for each request and keeps the one with the highest reward of the stage.

    sampler:
      name: best_of_n
      n: 4
      of:
        name: cached
        max_new_tokens: 128

The kept completions do not follow the policy's distribution, so `provides` never has "on_policy". They suit rejection
sampling and preference data, but not importance ratios.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from rlhf_peft.plugin import (
    MemoryNeeds,
    Options,
    PolicyView,
    Request,
    Rollout,
    SampleContext,
    Sampler,
    SamplerError,
)

Make = Callable[[str, str, Mapping[str, Any]], Any]
Memory = Callable[[str, str, Mapping[str, Any]], MemoryNeeds]
"""`make(kind, name, options)` makes something that is registered; `memory(...)` gives its memory needs."""


class InnerSampler(Options):
    """The name of a sampler, with its options beside the name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field("cached", description="The sampler that draws.")

    @model_validator(mode="after")
    def _options(self) -> InnerSampler:
        """Check the options of a built-in sampler now; those of a plugin's are checked when it is made."""
        factory = _builtins().get(self.name)
        try:
            if factory is not None:
                factory.Options.model_validate(self.model_extra or {})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
        return self


class BestOfNOptions(Options):
    """Options of `best_of_n`."""

    n: int = Field(4, ge=1, le=2**12, description="Completions drawn for each one that is kept.")
    of: InnerSampler = Field(
        default_factory=lambda: InnerSampler(), description="The sampler that draws, with its options."
    )


def _builtins() -> dict[str, Any]:
    """The samplers of this package by name."""
    from . import rlhf_peft_register_samplers

    samplers: dict[str, Any] = {}
    rlhf_peft_register_samplers(samplers.__setitem__)
    return samplers


def make_builtin(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """Make one of the samplers of this package; the registry's own `make` knows plugins' samplers too.

    Raises:
        SamplerError: there is no sampler of that name.
    """
    samplers = _builtins()
    if name not in samplers:
        raise SamplerError(
            f"sampler best_of_n: of.name: unknown sampler {name!r}. Known: {', '.join(sorted(samplers))}."
        )
    factory = samplers[name]
    return factory(factory.Options.model_validate(options))


def no_needs(kind: str, name: str, options: Mapping[str, Any]) -> MemoryNeeds:
    """Memory needs of a sampler when there is no registry to ask."""
    return MemoryNeeds()


class BestOfNSampler:
    """Keeps the best of n completions."""

    Options = BestOfNOptions
    wants_make = True

    def __init__(self, options: BestOfNOptions, make: Make = make_builtin) -> None:
        self.options = options
        self.inner: Sampler = make("samplers", options.of.name, options.of.model_extra or {})
        self.params = self.inner.params
        # The choice depends on scores, and a score may depend on the other rows of the batch.
        self.provides = frozenset(self.inner.provides) - {"on_policy", "row_seeds"}

    @classmethod
    def memory(cls, options: BestOfNOptions, memory: Memory = no_needs) -> MemoryNeeds:
        """The inner sampler's needs, with n rows for each request."""
        inner = memory("samplers", options.of.name, options.of.model_extra or {})
        rows = inner.rows_per_prompt * options.n
        return dataclasses.replace(
            inner, rows_per_prompt=rows, savings=tuple(f"of.{saving}" for saving in inner.savings)
        )

    def ready(self) -> None:
        """Check that the inner sampler is ready."""
        if hasattr(self.inner, "ready"):
            self.inner.ready()

    def sync(self, policy: PolicyView, version: int) -> None:
        """Pass the policy to the inner sampler."""
        self.inner.sync(policy, version)

    def close(self) -> None:
        """Close the inner sampler."""
        self.inner.close()

    def sample(self, requests: Sequence[Request], context: SampleContext | None = None) -> Rollout:
        """The best of n completions for each request: the first of equal ones, and one without a score only if all
        are.

        Raises:
            SamplerError: there are no rewards to choose by, or their scores do not fit.
        """
        if context is None:
            raise SamplerError(
                "sampler best_of_n: there are no rewards to choose by: this stage has none, or sampled without. "
                f"Use it in an rl stage with rewards, or sampler.name={self.options.of.name}."
            )
        drawn = [candidates(request, self.options.n) for request in requests]
        rollout = self.inner.sample([candidate for group in drawn for candidate in group], context)
        scores = context.score(rollout)
        if scores.shape != (len(rollout),):
            raise SamplerError(
                f"sampler best_of_n: {tuple(scores.shape)} scores for {len(rollout)} completions; expected one each."
            )
        return rollout.rows(best(scores, [len(group) for group in drawn]))


def candidates(request: Request, n: int) -> list[Request]:
    """The request n times, each with its own seed, the first with the request's; only once if it is greedy."""
    count = 1 if request.params.temperature == 0 else n
    return [dataclasses.replace(request, seed=seed(request.seed, i)) for i in range(count)]


def seed(base: int, index: int) -> int:
    """The seed of a row's `index`-th candidate, below 2^63; that of the first is the row's own."""
    if index == 0:
        return base
    digest = hashlib.sha256(f"best_of_n {base} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def best(scores: Tensor, counts: Sequence[int]) -> list[int]:
    """The row with the highest score in each group of `counts[i]` successive rows."""
    filled = scores.float().nan_to_num(nan=-float("inf"), posinf=float("inf"), neginf=-float("inf"))
    best_rows, start = [], 0
    for group in filled.split(list(counts)):
        best_rows.append(start + int(group.argmax()))
        start += len(group)
    return best_rows
