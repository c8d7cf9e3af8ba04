"""`online_dpo`: the policy's own completions, the best over the worst, in DPO's loss.

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

from rlhf_peft.plugin import AlgorithmBase, AlgorithmOptions, Minibatch, Outputs, Scored, Selection, maths


class OnlineDpoOptions(AlgorithmOptions):
    """Names and defaults follow TRL's OnlineDPOTrainer."""

    num_generations: int = Field(
        2, gt=1, le=2**12, description="Completions of each prompt; the best and the worst are a pair."
    )
    beta: float = Field(0.1, gt=0, le=1e6, description="Strength of the pull to the reference.")
    loss_type: Literal["sigmoid", "ipo"] = Field("sigmoid", description="DPO's loss, or IPO's.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Probability that a preference is wrong (sigmoid)."
    )


class OnlineDpo(AlgorithmBase):
    """One pair a prompt; a prompt whose completions all score the same has none.

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

    def select(self, scored: Scored, round: int) -> Selection:
        """The best and the worst of each group."""
        keep = torch.zeros(len(scored), dtype=torch.bool)
        for group in scored.rollout.group.unique():
            rows = (scored.rollout.group == group) & ~scored.scores.isnan()
            if maths.varies(scored.scores[rows]):
                keep[scored.scores.masked_fill(~rows, -torch.inf).argmax()] = True
                keep[scored.scores.masked_fill(~rows, torch.inf).argmin()] = True
        return Selection(keep)

    def unit(self, scored: Scored, keep: Tensor) -> Tensor:
        """A pair stays together."""
        return scored.rollout.group

    def prepare(self, scored: Scored, keep: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Each kept row's pair, and whether it is the better one."""
        best = torch.zeros(len(scored), dtype=torch.bool)
        margins = []
        for group in scored.rollout.group[keep].unique():
            first, second = ((scored.rollout.group == group) & keep).nonzero().flatten().tolist()
            best[first if scored.scores[first] > scored.scores[second] else second] = True
            margins.append(float((scored.scores[first] - scored.scores[second]).abs()))
        figures = {"pairs": float(len(margins)), "scores/margin": sum(margins) / max(1, len(margins))}
        return {"pair": scored.rollout.group, "best": best}, figures

    def loss(self, outputs: Outputs, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """-log s(beta d), or (d - 1 / (2 beta))^2 for IPO; d = log pi/ref of the best - of the worst; [n]."""
        assert minibatch.ref_logps is not None
        options, pair = self.options, minibatch.columns["pair"]
        theirs = torch.where(minibatch.columns["best"], 1.0, -1.0)
        ratios = maths.masked_sum(outputs.logps - minibatch.ref_logps, minibatch.mask, dim=-1)
        # Each row sees its pair's difference: the two rows of a pair both carry its loss, over twice as many rows.
        same = (pair.unsqueeze(0) == pair.unsqueeze(1)).to(ratios.dtype)
        difference = same @ (theirs * ratios)
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
