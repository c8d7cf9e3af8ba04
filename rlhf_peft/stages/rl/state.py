"""The state of the RL loop, as a checkpoint holds it beside the trained roles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...hookspecs import Stateful

if TYPE_CHECKING:
    from .parts import Parts


def snapshot(parts: Parts, metrics: Mapping[str, float], *, logged: bool) -> None:
    """Note that a step is done.

    Args:
        parts: of the loop.
        metrics: of the step.
        logged: whether it has been evaluated and logged; if not, a run that goes on from here does so first.
    """
    parts.ctx.checkpointer.snapshot(
        parts.stage,
        parts.step,
        parts.roles,
        parts.updater.optimizer,
        state_dict(parts) | {"unlogged": None if logged else dict(metrics)},
        metrics=metrics if logged else None,
    )


def state_dict(parts: Parts) -> dict[str, Any]:
    """What the loop has changed so far, beside its roles and the optimizer's state: tensors and what JSON holds."""
    evaluator, sampler = parts.evaluator, parts.sampler
    return {
        "step": parts.step,
        "tokens": parts.tokens,
        "skipped": parts.updater.guard.in_a_row,
        "budgets": [budget.amount for budget in _budgets(parts)],
        "scheduler": parts.scheduler.state_dict(),
        "algorithm": parts.algorithm.state_dict(),
        "rewards": parts.rewards.state_dict(),
        "held_out_rewards": None if evaluator is None else evaluator.rewards.state_dict(),
        "sampler": sampler.state_dict() if isinstance(sampler, Stateful) else None,
        "prompts": parts.prompts.state_dict(),
        "guards": parts.collapse.state_dict(),
        **parts.updater.loss_scale.state_dict(),
    }


def restore(parts: Parts) -> dict[str, float] | None:
    """Go on from a checkpoint, if there is one of this stage: `parts.step` is then the last step that was done.

    Returns:
        The metrics of that step if it is still to be evaluated and logged, else None.
    """
    state = parts.ctx.checkpointer.stage_state(parts.stage)
    if state is None:
        return None
    parts.step, parts.tokens = state["step"], state["tokens"]
    parts.updater.guard.in_a_row = state["skipped"]
    parts.updater.loss_scale.load_state_dict(state)
    for budget, amount in zip(_budgets(parts), state["budgets"], strict=True):
        budget.amount = amount
    parts.updater.optimizer.load_state_dict(state["optimizer"])
    parts.scheduler.load_state_dict(state["scheduler"])
    parts.algorithm.load_state_dict(state["algorithm"])
    parts.rewards.load_state_dict(state["rewards"])
    if parts.evaluator is not None and state["held_out_rewards"] is not None:
        parts.evaluator.rewards.load_state_dict(state["held_out_rewards"])
    if state["sampler"] is not None and isinstance(parts.sampler, Stateful):
        parts.sampler.load_state_dict(state["sampler"])
    parts.prompts.load_state_dict(state["prompts"])
    parts.collapse.load_state_dict(state["guards"])
    parts.ctx.checkpointer.restore(state)
    unlogged: dict[str, float] | None = state["unlogged"]
    return unlogged


def _budgets(parts: Parts) -> list[Any]:
    return [parts.forwards.budget, parts.updater.budget, parts.sampling_budget]
