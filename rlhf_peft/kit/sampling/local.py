"""A base class for samplers that use the run's own model, `LocalSampler`, and its decoding loop, `write_rows`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import SamplerError
from ...hookspecs import DecodingModel, PolicyView, SampleContext, TokenDecoder
from ...types import MemoryNeeds, Request, Rollout, SamplingParams
from .options import LocalOptions, shorter
from .rows import Row, by_length, rollout_of, start_rows
from .steps import steps_of

READ_EVERY = 8
"""On a card the drawn tokens are read, and rows that have ended are found, after so many steps."""


def provided(params: SamplingParams, *words: str) -> frozenset[str]:
    """What a sampler provides: these words, and "on_policy" unless its parameters exclude tokens of the policy."""
    return frozenset(words) if params.truncated else frozenset({*words, "on_policy"})


class LocalSampler:
    """Draws completions from the policy, token by token.

    A subclass that draws in another way overrides `write`; one that chooses among drawn rows extends `sample`.

    Attributes:
        name: for messages.
        params: the parameters of a request where the algorithm sets no others.
        provides: see `hookspecs.Sampler`.
        max_rows: most rows that are decoded at once.
        shares_prompts: whether `write` keeps a prompt in memory once for all its rows.
    """

    Options: ClassVar[type[LocalOptions]] = LocalOptions
    name: ClassVar[str]
    shares_prompts: ClassVar[bool] = True

    def __init__(self, options: LocalOptions) -> None:
        self.max_rows = options.max_rows
        self.params = options.params
        self.provides = provided(options.params, "logps", "row_seeds")
        self._view: PolicyView | None = None
        self._version = 0

    @classmethod
    def memory(cls, options: LocalOptions) -> MemoryNeeds:
        """The memory that decoding needs; decoding fewer rows at once needs less."""
        fewer = (f"max_rows={max(8, options.max_rows // 4)}",) if options.max_rows > 8 else ()
        return MemoryNeeds(
            rows_at_once=options.max_rows,
            shares_prompts=cls.shares_prompts,
            savings=(*fewer, *shorter(options)),
        )

    def sync(self, policy: PolicyView, version: int) -> None:
        """Store the policy; its weights are read when sampling begins."""
        self._view, self._version = policy, version

    def close(self) -> None:
        """Release the policy."""
        self._view = None

    def sample(self, requests: Sequence[Request], context: SampleContext | None = None) -> Rollout:
        """One completion for each request.

        Raises:
            SamplerError: there is no policy yet, a prompt leaves no room for a token, or the model cannot be decoded.
        """
        if self._view is None:
            raise SamplerError(f"sampler {self.name}: sample() before sync().")
        rows = start_rows(requests, self._view.max_length, self.name)
        if rows:
            with self._view.decoding() as model:
                self.write(model, self._view, rows)
        return rollout_of(rows, self._version)

    def write(self, model: DecodingModel, view: PolicyView, rows: list[Row]) -> None:
        """Write all rows to their end, in batches of at most `max_rows` rows whose prompts are of like length.

        Args:
            model: the policy, ready to decode.
            view: the policy: which tokens end a row, and how they read.
            rows: are filled in place.
        """
        for batch in by_length(rows, self.max_rows):
            prompts = [row.request.prompt_ids.tolist() for row in batch]
            write_rows(model.start(prompts, max(row.room for row in batch)), view, batch)


def write_rows(
    decoder: TokenDecoder, view: PolicyView, rows: Sequence[Row], *, read_every: int | None = None
) -> None:
    """Draw tokens for all rows of a batch until each has ended.

    A row's tokens depend on the row alone, so it makes no difference when it is seen that a row has ended.

    Args:
        decoder: of the rows' prompts, in the order of the rows.
        view: the policy.
        rows: are filled in place.
        read_every: after how many steps the drawn tokens are read; None: after each on a CPU, else after 8, because
            every read makes the host wait for the card, and the card for the host's next step.
    """
    every = read_every or (1 if torch.device(view.device).type == "cpu" else READ_EVERY)
    alive = list(rows)
    steps = steps_of(decoder, alive, view.device)
    for begin in range(0, steps.room, every):
        _take(alive, steps.run(min(begin + every, steps.room)), view)
        going = [i for i, row in enumerate(alive) if row.finish is None]
        if not going:
            return
        if steps.should_compact(len(going), len(alive)):
            alive = [alive[i] for i in going]
            steps.keep(going, alive)


def _take(rows: Sequence[Row], drawn: Tensor, view: PolicyView) -> None:
    """Give each row its tokens of some steps [t, 2, B], by one read of the device."""
    for tokens, logps in drawn.tolist():
        for row, token, logp in zip(rows, tokens, logps, strict=True):
            row.take(int(token), logp, view)
