"""`language_model`: the likelihood of a completion under the base model without adapters."""

from __future__ import annotations

import math

import torch
from torch.nn.utils.rnn import pad_sequence

from rlhf_peft.plugin import Options, RewardBatch, RewardError, Scores


class LanguageModelOptions(Options):
    """`language_model` has no options."""


class LanguageModelReward:
    """Mean log-probability of a completion's tokens under the base without adapters, in nats.

    s_i = 1 / |y_i| sum_t log p_base(y_it | x_i, y_i<t)
    """

    Options = LanguageModelOptions
    roles: tuple[str, ...] = ("base",)
    timeout: float | None = None

    def __init__(self, options: LanguageModelOptions) -> None:
        pass

    async def score(self, batch: RewardBatch) -> Scores:
        """One score for each completion; a completion without tokens abstains.

        Raises:
            RewardError: the base's log-probabilities were not computed.
        """
        if "base" not in batch.logps:
            raise RewardError("reward language_model: this stage computes no log-probabilities of the base.")
        mask = pad_sequence(batch.rollout.action_mask, batch_first=True, padding_value=False)
        counts = mask.sum(1)
        total = torch.where(mask, batch.logps["base"], 0.0).sum(1)
        return Scores(row=torch.where(counts > 0, total / counts.clamp(min=1), math.nan))
