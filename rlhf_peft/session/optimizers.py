"""Optimizers and warmup, for the stages with a loop of their own."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..errors import UsageError
from ..recipe.schema import StageBase


def make_optimizer(stage: StageBase, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW in the kind and with the coefficients that the stage names.

    The 8-bit kinds of bitsandbytes wait for the card after each parameter: they save memory, not time.

    Args:
        stage: part of the recipe.
        groups: parameters with their learning rates.

    Raises:
        UsageError: the kind needs a GPU and there is none.
    """
    name = stage.optimizer
    how: dict[str, Any] = {
        "weight_decay": stage.weight_decay,
        "betas": (stage.adam_beta1, stage.adam_beta2),
        "eps": stage.adam_epsilon,
    }
    if name == "adamw":
        # One kernel for many parameters, where all are on a card; elsewhere as torch chooses.
        on_card = all(parameter.device.type == "cuda" for group in groups for parameter in group["params"])
        return torch.optim.AdamW(groups, **how, fused=on_card or None)
    if not torch.cuda.is_available():
        raise UsageError(f"optimizer: {name} needs a CUDA GPU. Use optimizer=adamw.")
    import bitsandbytes

    kind = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}[name]
    made: torch.optim.Optimizer = getattr(bitsandbytes.optim, kind)(groups, **how)
    return made


def warmup_steps(warmup: float, total: int) -> int:
    """A recipe's `warmup` in updates: a fraction below 1, else a number."""
    return round(warmup * total) if warmup < 1 else int(warmup)


def advance(scheduler: Any) -> None:
    """The next step of the schedule, also where the update was skipped."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        scheduler.step()
