"""Optimizers and warmup, for the stages with a loop of their own."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..errors import UsageError


def make_optimizer(
    name: str, groups: list[dict[str, Any]], weight_decay: float, eps: float
) -> torch.optim.Optimizer:
    """AdamW in the kind that the recipe names.

    Raises:
        UsageError: the kind needs a GPU and there is none.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=weight_decay, eps=eps)
    if not torch.cuda.is_available():
        raise UsageError(f"optimizer: {name} needs a CUDA GPU. Use optimizer=adamw.")
    import bitsandbytes

    kind = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}[name]
    made: torch.optim.Optimizer = getattr(bitsandbytes.optim, kind)(
        groups, weight_decay=weight_decay, eps=eps
    )
    return made


def warmup_steps(warmup: float, total: int) -> int:
    """A recipe's `warmup` in updates: a fraction below 1, else a number."""
    return round(warmup * total) if warmup < 1 else int(warmup)


def advance(scheduler: Any) -> None:
    """The next step of the schedule, also where the update was skipped."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        scheduler.step()
