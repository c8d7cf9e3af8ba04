"""`rejection_sampling`: expert iteration. Sample several completions, and train on the best as on demonstrations.

RAFT, Dong et al. 2023 (arXiv:2304.06767); ReST, Gulcehre et al. 2023 (arXiv:2308.08998), with `min_score`; rejection
sampling in Touvron et al. 2023 (arXiv:2307.09288), section 3.2.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import AlgorithmBase, AlgorithmOptions, Batch, Minibatch, Outputs, Selection


class RejectionSamplingOptions(AlgorithmOptions):
    """Options of `rejection_sampling`: the completions that are trained on."""

    num_generations: int = Field(8, gt=0, le=2**12, description="Completions of each prompt.")
    keep: int = Field(1, gt=0, le=2**12, description="Best completions of each prompt that are trained on.")
    min_score: float | None = Field(
        None, ge=-1e6, le=1e6, description="Only completions that score at least this; null: any."
    )


class RejectionSampling(AlgorithmBase):
    """Cross-entropy on the best completions, without a KL term: only few steps per rollout keep the policy close."""

    Options = RejectionSamplingOptions
    metrics: ClassVar[Mapping[str, str]] = {
        "kept/score": "mean score of the completions that are trained on",
        "nll": "mean over tokens of -logp of the completions that are trained on",
    }

    def select(self, batch: Batch, round: int) -> Selection:
        """Select the best rows of each group whose score is high enough."""
        enough = ~batch.scores.isnan()
        if self.options.min_score is not None:
            enough &= batch.scores >= self.options.min_score
        train = torch.zeros(len(batch), dtype=torch.bool)
        for group in batch.rollout.group.unique():
            rows = ((batch.rollout.group == group) & enough).nonzero().flatten()
            train[rows[batch.scores[rows].argsort(descending=True, stable=True)[: self.options.keep]]] = True
        return Selection(train)

    def prepare(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        """No further columns; logs the mean score of the selected completions."""
        return {}, {"kept/score": float(batch.scores[batch.train].mean())} if bool(batch.train.any()) else {}

    def loss(self, outputs: Outputs, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """-logp for each token, [n, T]."""
        terms = -outputs.logps
        return terms, {"nll": terms.detach()}
