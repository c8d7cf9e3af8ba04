"""`online_dpo`: DPO's loss on pairs of the policy's own completions, the best and the worst of each prompt.

Guo et al. 2024 (arXiv:2402.04792), with the rewards as the judge; loss: Rafailov et al. 2023 (arXiv:2305.18290), or
IPO, Azar et al. 2023 (arXiv:2310.12036), on sums over tokens as in the paper and in TRL's OnlineDPOTrainer (its
DPOTrainer takes means).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import AlgorithmBase, AlgorithmOptions, Batch, Minibatch, Outputs, Selection, maths


class OnlineDpoOptions(AlgorithmOptions):
    """Options of `online_dpo`; names and defaults are those of TRL's OnlineDPOTrainer."""

    num_generations: int = Field(
        2, gt=1, le=2**12, description="Completions of each prompt; the best and the worst are a pair."
    )
    beta: float = Field(0.1, gt=0, le=1e6, description="Strength of the pull to the reference.")
    loss_type: Literal["sigmoid", "ipo"] = Field("sigmoid", description="DPO's loss, or IPO's.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Probability that a preference is wrong (sigmoid)."
    )


class OnlineDpo(AlgorithmBase):
    """Trains on one pair per prompt; a prompt whose completions all have the same score gives no pair.

    TRL's trainer takes the first of two completions with equal scores as the better one.
    """

    Options = OnlineDpoOptions
    roles = ("policy", "reference")
    metrics: ClassVar[Mapping[str, str]] = {
        "pairs": "pairs that the step trained on",
        "scores/margin": "mean over pairs of score of the best - score of the worst",
        "dpo/loss": "mean over pairs of the loss",
        "dpo/accuracy": "share of pairs whose implicit reward beta (logp - ref_logp) is higher for the best",
        "dpo/margin": "mean over pairs of the difference of the implicit rewards",
    }

    def select(self, batch: Batch, round: int) -> Selection:
        """Select the best and the worst row of each group."""
        train = torch.zeros(len(batch), dtype=torch.bool)
        for group in batch.rollout.group.unique():
            rows = (batch.rollout.group == group) & ~batch.scores.isnan()
            if maths.varies(batch.scores[rows]):
                train[batch.scores.masked_fill(~rows, -torch.inf).argmax()] = True
                train[batch.scores.masked_fill(~rows, torch.inf).argmin()] = True
        return Selection(train)

    def minibatch_units(self, batch: Batch) -> Tensor:
        """The group of each row, so that both rows of a pair are in one minibatch."""
        return batch.rollout.group

    def prepare(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        """For each row, the number of its pair, and whether it is the better one."""
        best = torch.zeros(len(batch), dtype=torch.bool)
        margins = []
        for group in batch.rollout.group[batch.train].unique():
            first, second = ((batch.rollout.group == group) & batch.train).nonzero().flatten().tolist()
            best[first if batch.scores[first] > batch.scores[second] else second] = True
            margins.append(float((batch.scores[first] - batch.scores[second]).abs()))
        metrics = {"pairs": float(len(margins)), "scores/margin": sum(margins) / max(1, len(margins))}
        return {"pair": batch.rollout.group, "best": best}, metrics

    def loss(self, outputs: Outputs, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """-log s(beta d), or (d - 1 / (2 beta))^2 for IPO, with d = log pi/ref of the best - of the worst; [n]."""
        assert minibatch.ref_logps is not None
        options, pair = self.options, minibatch.columns["pair"]
        signs = torch.where(minibatch.columns["best"], 1.0, -1.0)
        ratios = maths.masked_sum(outputs.logps - minibatch.ref_logps, minibatch.mask, dim=-1)
        # Each row sees its pair's difference: the two rows of a pair both carry its loss, over twice as many rows.
        same = (pair.unsqueeze(0) == pair.unsqueeze(1)).to(ratios.dtype)
        difference = same @ (signs * ratios)
        zero = torch.zeros_like(difference)
        if options.loss_type == "ipo":
            terms = (difference - 1.0 / (2.0 * options.beta)).square()
        else:
            terms = maths.dpo_terms(difference, zero, zero, zero, options.beta, options.label_smoothing)
        return terms, {
            "dpo/loss": terms.detach(),
            "dpo/accuracy": (difference > 0).float(),
            "dpo/margin": options.beta * difference.detach(),
        }
