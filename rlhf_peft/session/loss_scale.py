"""Loss scaling: the loss is multiplied before the backward pass, so that gradients do not underflow in float16.

Mixed precision training: Micikevicius et al. 2018, arXiv:1710.03740. The scale goes as in `torch.amp.GradScaler`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger("rlhf_peft")

FIRST = 2.0**16
"""The scale of the first update."""
BACKOFF, GROWTH, INTERVAL = 0.5, 2.0, 2000
"""Factor after a gradient that overflows, factor after so many updates in a row without one."""


class LossScale:
    """The factor on the loss of a stage. Where the base does not compute in float16, it does nothing.

    Its value follows from the loss and the gradient norm of each update, which the host reads anyway. Several processes
    read the same sums, so they have the same value.

    Args:
        stage: its name, for messages.
        dtype: that the base computes in.

    Attributes:
        on: whether there is a scale.
        value: of the scale; a power of two, so that no gradient is rounded by it.
        taken: updates since the scale was last changed.
    """

    def __init__(self, stage: str, dtype: torch.dtype) -> None:
        self.stage, self.on = stage, dtype == torch.float16
        self.value, self.taken = FIRST if self.on else 1.0, 0

    def backward(self, loss: Tensor) -> None:
        """The backward pass of the scaled loss."""
        (loss * self.value if self.on else loss).backward()

    def unscale(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make the gradients those of the loss itself, before they are clipped."""
        if self.on:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(1.0 / self.value)

    def overflows(self, step: int, loss: float, norm: float) -> bool:
        """Whether an update must be skipped because its gradient overflowed under this scale; then lowers the scale.

        Where the loss itself is not finite, or the scale is 1 already, something else is wrong: the answer is no.

        Args:
            step: of the update, for messages.
            loss: of the update, not scaled.
            norm: of its gradient, not scaled.
        """
        if not self.on:
            return False
        if math.isfinite(norm):
            self.taken += 1
            if self.taken == INTERVAL:
                self.value, self.taken = self.value * GROWTH, 0
            return False
        if not math.isfinite(loss) or self.value <= 1.0:
            return False
        self.value, self.taken = self.value * BACKOFF, 0
        log.info(
            "%s step %s: the gradient overflows in float16. The update is skipped, and the loss scale is now %g.",
            self.stage,
            step,
            self.value,
        )
        return True

    def metrics(self) -> dict[str, float]:
        """The scale as a metric; nothing where there is none."""
        return {"loss_scale": self.value} if self.on else {}

    def state_dict(self) -> dict[str, Any]:
        """The part of a stage's state that a checkpoint holds; nothing where there is no scale."""
        return {"loss_scale": [self.value, self.taken]} if self.on else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stage's state."""
        if self.on and "loss_scale" in state:
            self.value, self.taken = state["loss_scale"]
