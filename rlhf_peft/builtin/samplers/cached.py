"""The default sampler: decodes with dense merged weights and a preallocated cache.

Each prompt is processed once for its whole group. Rows that have ended are dropped from the batch. Tokens are drawn
by inverse CDF from one uniform number for each row and token, so that a completion depends on its own seed and not
on the other rows of its batch. The engine computes the steps (`DecodingModel.start`).

Models whose cache holds something else than keys and values (Mamba, convolutions, caches that layers share) are
decoded by `hf`.

Left out on purpose: beam search; several turns.
"""

from __future__ import annotations

import logging

from rlhf_peft.plugin import DecodingModel, LocalOptions, LocalSampler, PolicyView, Row

from .hf import HfOptions, HfSampler

log = logging.getLogger("rlhf_peft")


class CachedSampler(LocalSampler):
    """Writes completions with the policy's own weights."""

    Options = LocalOptions
    name = "cached"

    def __init__(self, options: LocalOptions) -> None:
        super().__init__(options)
        self._other: HfSampler | None = None

    def write(self, model: DecodingModel, view: PolicyView, rows: list[Row]) -> None:
        """Write all rows to their end; with `hf` if the model's cache is of another kind."""
        if model.can_start:
            super().write(model, view, rows)
            return
        if self._other is None:
            log.warning(
                "sampler cached: %s keeps more than keys and values, so the sampler hf writes in its place.",
                type(model.lm).__name__,
            )
            self._other = HfSampler(HfOptions(max_rows=min(self.max_rows, HfOptions().max_rows)))
        self._other.write(model, view, rows)
