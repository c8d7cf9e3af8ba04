"""`grpo`: group relative policy optimisation, with its variants that differ only in scaling and normalisation.

GRPO, Shao et al. 2024 (arXiv:2402.03300); Dr. GRPO, Liu et al. 2025 (arXiv:2503.20783); DAPO, Yu et al. 2025
(arXiv:2503.14476), which adds `epsilon_high: 0.28`, `dynamic_sampling`, `overlong_buffer` and
`mask_truncated_completions`; BNPO as in TRL.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import Batch, Minibatch, PolicyGradient, PolicyOptions, maths


class GroupOptions(PolicyOptions):
    """Options of methods that compare the completions of one prompt; defaults are TRL's."""

    num_generations: int = Field(8, gt=1, le=2**12, description="Completions of each prompt: its group.")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group",
        description="Divide advantages by the standard deviation of the group, of the batch, or not at all.",
    )


class GrpoOptions(GroupOptions):
    """Options of `grpo`."""

    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = Field(
        "dapo",
        description="Normalisation. grpo: mean over rows of the mean over tokens; dapo, bnpo: mean over all tokens of "
        "the minibatch (exact under any split, so both are the same here); dr_grpo: sum over tokens / (rows x "
        "max_new_tokens).",
    )


class Group(PolicyGradient):
    """Computes advantages by comparing scores within the group of a prompt."""

    def advantages(self, batch: Batch, scores: Tensor) -> Tensor:
        """Advantages (s - mean) / (std + 1e-4), [N]."""
        rewards = self.row_rewards(batch, scores)
        return maths.group_advantages(rewards, batch.rollout.group, self.options.scale_rewards)


class Grpo(Group):
    """Clipped policy terms with group advantages."""

    Options = GrpoOptions

    def weights(self, minibatch: Minibatch) -> Tensor:
        """Weights of the tokens, normalised as `loss_type` says."""
        kind: Literal["sequence", "constant", "token"]
        kind = {"grpo": "sequence", "dr_grpo": "constant"}.get(self.options.loss_type, "token")  # type: ignore[assignment]
        return maths.token_weights(
            minibatch.mask, kind, minibatch.total_tokens, minibatch.total_rows, self.max_new_tokens
        )
