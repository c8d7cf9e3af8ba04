"""`remax`: REINFORCE with the score of the greedy completion as baseline. Li et al. 2023 (arXiv:2310.10505)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import (
    BASELINE,
    Batch,
    MemoryNeeds,
    PolicyGradient,
    PolicyOptions,
    Prompt,
    Request,
    RequestContext,
    maths,
)


class RemaxOptions(PolicyOptions):
    """Options of `remax`. The KL is part of the reward at each token, as in the paper's algorithm 1."""

    beta: float = Field(0.05, ge=0, le=1e6, description="KL coefficient; 0: no reference is needed.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="Per-token estimator of the KL.")
    kl_placement: Literal["reward", "loss"] = Field("reward", description="Where the KL is subtracted.")


class Remax(PolicyGradient):
    """Subtracts the score of the prompt's greedy completion from the returns."""

    Options = RemaxOptions

    @classmethod
    def memory(cls, options: RemaxOptions) -> MemoryNeeds:
        """Memory needs: `num_generations` samples of each prompt, and a greedy row."""
        return MemoryNeeds(rows_per_prompt=options.num_generations + 1)

    def requests(self, prompts: Sequence[Prompt], context: RequestContext) -> list[Request]:
        """`num_generations` samples of each prompt, and one greedy row as baseline."""
        greedy = replace(context.params, temperature=0.0)
        return super().requests(prompts, context) + [
            Request(prompt.ids, group, 0, greedy, BASELINE, prompt.columns)
            for group, prompt in enumerate(prompts)
        ]

    def advantages(self, batch: Batch, scores: Tensor) -> Tensor:
        """Advantages R_t - s(greedy), [N, T]; R_t is the sum of score and -beta * KL from t on."""
        baseline = torch.zeros_like(scores)
        is_greedy = torch.tensor([tag == BASELINE for tag in batch.rollout.tag])
        for row in is_greedy.nonzero().flatten().tolist():
            same = batch.rollout.group == batch.rollout.group[row]
            baseline[same] = scores[row].nan_to_num(0.0)
        rewards = self.token_rewards(batch, scores)
        returns = maths.discounted_returns(rewards, batch.mask, 1.0)
        return torch.where(batch.mask, returns - baseline.unsqueeze(-1), 0.0)
