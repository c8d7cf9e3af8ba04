"""`reinforce`: REINFORCE with a running baseline, a moving average of all scores so far.

Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", section 4,
on reinforcement baselines. One completion of each prompt is enough; there is no value model and no ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import Batch, PolicyGradient, PolicyOptions, Register, hookimpl

HOOK_API = 1


class ReinforceOptions(PolicyOptions):
    """The options of every policy gradient, and how long the baseline remembers."""

    baseline_decay: float = Field(
        0.9, ge=0, lt=1, description="Share of the old baseline that stays at each step."
    )
    num_epochs: int = Field(
        1, ge=1, le=1, description="One pass over a rollout: without a ratio, a second is wrong."
    )
    num_minibatches: int = Field(1, ge=1, le=1, description="One update in a pass, for the same reason.")


class Reinforce(PolicyGradient):
    """L = -(r - b) log pi, summed over a completion's tokens; b <- d b + (1 - d) mean r."""

    Options = ReinforceOptions
    metrics: ClassVar[Mapping[str, str]] = {
        **PolicyGradient.metrics,
        "policy/loss": "mean over tokens of -(r - b) logp",
        "baseline": "b, the moving average of the scores before this step",
    }

    def __init__(self, options: ReinforceOptions) -> None:
        super().__init__(options)
        self.baseline: float | None = None

    def advantages(self, batch: Batch, scores: Tensor) -> Tensor:
        """[N] r - b, with b as it was before these rows; at the first step b is their mean."""
        rewards = self.row_rewards(batch, scores)
        if not bool(batch.train.any()):
            return torch.zeros_like(rewards)
        mean = float(rewards[batch.train].mean())
        before = mean if self.baseline is None else self.baseline
        decay = self.options.baseline_decay
        self.baseline = before * decay + (1.0 - decay) * mean
        self.step_metrics["baseline"] = before
        return torch.where(batch.train, rewards - before, 0.0)

    def policy_terms(
        self, logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-A log pi; nothing is clipped."""
        return -advantages * logps, torch.zeros_like(mask)

    def state_dict(self) -> dict[str, Any]:
        """The baseline beside the present beta."""
        return {**super().state_dict(), "baseline": self.baseline}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a baseline."""
        super().load_state_dict(state)
        self.baseline = None if state["baseline"] is None else float(state["baseline"])


@hookimpl
def rlhf_peft_register_algorithms(register: Register) -> None:
    """Offer the algorithm."""
    register("reinforce", Reinforce)
