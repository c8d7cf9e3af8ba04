"""Changes of a recipe that need less memory, each found by planning again with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..recipe import Recipe, RewardModelStage, RlStage, SftStage
from ..recipe.schema import DEFAULT_QUANTIZER
from ..registry import Registry
from .plan import Plan


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change: the overrides to paste, the bytes that it saves at the peak, whether all fits then."""

    overrides: tuple[str, ...]
    saves: int
    fits: bool


Again = Callable[[list[str]], Plan]
"""Plans the recipe again with overrides."""


def candidates(recipe: Recipe, registry: Registry, *, gpu: bool) -> list[str]:
    """Overrides that may need less memory, those that cost least first."""
    model = recipe.model
    found = []
    if gpu:
        found += [
            f"stages.{stage.name}.optimizer=paged_adamw_8bit"
            for stage in recipe.stages
            if stage.optimizer == "adamw"
        ]
    if model.tokens_per_forward > 1024:
        found.append(f"model.tokens_per_forward={max(1024, model.tokens_per_forward // 4)}")
    if not model.gradient_checkpointing:
        found.append("model.gradient_checkpointing=true")
    if model.merge_rollouts is not False and any(isinstance(stage, RlStage) for stage in recipe.stages):
        found.append("model.merge_rollouts=false")
    for stage in recipe.stages:
        if isinstance(stage, RlStage):
            found += _of_rl(stage, registry, reward_role=_has_reward_role(recipe, stage))
        elif isinstance(stage, SftStage) and not stage.packing and model.max_length is None:
            found.append("model.max_length=1024")
    if model.quantization.name != DEFAULT_QUANTIZER:
        found.append(f"model.quantization={DEFAULT_QUANTIZER}")
    if recipe.lora.r > 8:
        found.append(f"lora.r={recipe.lora.r // 2}")
    return found


def _has_reward_role(recipe: Recipe, stage: RlStage) -> bool:
    """Whether a reward model is trained before the stage, or loaded by it."""
    before = recipe.stages[: recipe.stages.index(stage)]
    return "reward" in stage.init or any(isinstance(other, RewardModelStage) for other in before)


def _of_rl(stage: RlStage, registry: Registry, *, reward_role: bool) -> list[str]:
    where, options = f"stages.{stage.name}", []
    algorithm = registry.memory("algorithms", stage.algorithm.name, stage.algorithm.options)
    # A value on the reward trunk stands on a reward model.
    options += [
        f"{where}.algorithm.{saving}" for saving in algorithm.savings if reward_role or "reward" not in saving
    ]
    sampler = registry.memory("samplers", stage.sampler.name, stage.sampler.options)
    options += [f"{where}.sampler.{saving}" for saving in sampler.savings]
    if stage.prompts_per_step > 1:
        options.append(f"{where}.prompts_per_step={max(1, stage.prompts_per_step // 2)}")
    return options


def remedies(plan: Plan, options: list[str], again: Again) -> list[Remedy]:
    """What each change alone saves, and, where none is enough, changes that are together.

    Args:
        plan: of the recipe as it is.
        options: overrides to try.
        again: plans with overrides.

    Returns:
        Those that save something, those that fit first; the combination last.
    """
    tried = [_try(plan, [option], again) for option in options]
    useful = [remedy for remedy in tried if remedy.saves > 0]
    useful.sort(key=lambda remedy: not remedy.fits)
    if any(remedy.fits for remedy in useful):
        return useful
    taken: list[str] = []
    best = plan.peak.total
    for option in options:
        planned = again([*taken, option])
        if planned.peak.total < best:
            taken, best = [*taken, option], planned.peak.total
        if planned.verdict != "does not fit":
            break
    if len(taken) > 1:
        useful.append(_try(plan, taken, again))
    return useful


def _try(plan: Plan, overrides: list[str], again: Again) -> Remedy:
    planned = again(overrides)
    saves = plan.peak.total - planned.peak.total
    return Remedy(tuple(overrides), saves, planned.verdict != "does not fit")
