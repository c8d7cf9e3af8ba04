"""The default sampler: decodes with dense merged weights and a cache that is written in place.

Each prompt is read once for its whole group; rows that have ended are dropped from the batch, and tokens are drawn by
inverse CDF from one uniform number a row and token, so that a completion depends on its own seed and not on its
batch-mates. How a step is computed is the engine's affair (`PolicyView.start_decoding`).

Models that keep something else than keys and values (Mamba's kind, convolutions, caches that layers share) are left to
`hf`.

Left out on purpose: beams; several turns.
"""

from __future__ import annotations

import logging
from typing import Any

from rlhf_peft.plugin import LocalOptions, LocalSampler, PolicyView, Row

from .hf import HfOptions, HfSampler

log = logging.getLogger("rlhf_peft")


class CachedSampler(LocalSampler):
    """Writes completions with the policy's own weights."""

    Options = LocalOptions
    name = "cached"

    def __init__(self, options: LocalOptions) -> None:
        super().__init__(options)
        self._other: HfSampler | None = None

    def write(self, model: Any, view: PolicyView, rows: list[Row]) -> None:
        """Write all rows to their end; by `hf` where the model's cache is of another kind."""
        if view.can_decode(model):
            super().write(model, view, rows)
            return
        if self._other is None:
            log.warning(
                "sampler cached: %s keeps more than keys and values, so the sampler hf writes in its place.",
                type(model).__name__,
            )
            self._other = HfSampler(HfOptions(max_rows=min(self.max_rows, HfOptions().max_rows)))
        self._other.write(model, view, rows)
