"""Changes of a recipe that need less memory; how much each saves is known by planning the recipe with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..recipe import Recipe, RewardModelStage, RlStage, SftStage
from ..recipe.schema import DEFAULT_QUANTIZER
from ..registry import Registry
from .plan import Plan


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change of a recipe.

    Attributes:
        overrides: as on the command line.
        saves: bytes at the peak.
        fits: whether the recipe fits with it.
    """

    overrides: tuple[str, ...]
    saves: int
    fits: bool


Again = Callable[[list[str]], Plan]
"""A function from overrides to the plan of the recipe with them."""


def candidates(recipe: Recipe, registry: Registry, *, gpu: bool) -> list[str]:
    """Overrides that may need less memory, those with the least cost in speed or quality first."""
    model = recipe.model
    overrides = []
    if gpu:
        overrides += [
            f"stages.{stage.name}.optimizer=adamw_8bit"
            for stage in recipe.stages
            if stage.optimizer == "adamw"
        ]
    if model.tokens_per_forward > 1024:
        overrides.append(f"model.tokens_per_forward={max(1024, model.tokens_per_forward // 4)}")
    if not model.gradient_checkpointing:
        overrides.append("model.gradient_checkpointing=true")
    if model.merge_rollouts is not False and any(isinstance(stage, RlStage) for stage in recipe.stages):
        overrides.append("model.merge_rollouts=false")
    for stage in recipe.stages:
        if isinstance(stage, RlStage):
            overrides += _of_rl(stage, registry, reward_role=_has_reward_role(recipe, stage))
        elif isinstance(stage, SftStage) and not stage.packing and model.max_length is None:
            overrides.append("model.max_length=1024")
    if model.quantization.name != DEFAULT_QUANTIZER:
        overrides.append(f"model.quantization={DEFAULT_QUANTIZER}")
    if recipe.lora.r > 8:
        overrides.append(f"lora.r={recipe.lora.r // 2}")
    return overrides


def _has_reward_role(recipe: Recipe, stage: RlStage) -> bool:
    """Whether a reward model is trained before the stage, or loaded by it."""
    before = recipe.stages[: recipe.stages.index(stage)]
    return "reward" in stage.init or any(isinstance(other, RewardModelStage) for other in before)


def _of_rl(stage: RlStage, registry: Registry, *, reward_role: bool) -> list[str]:
    where, options = f"stages.{stage.name}", []
    algorithm = registry.memory("algorithms", stage.algorithm.name, stage.algorithm.options)
    # A value on the reward trunk needs a reward model.
    options += [
        f"{where}.algorithm.{saving}" for saving in algorithm.savings if reward_role or "reward" not in saving
    ]
    sampler = registry.memory("samplers", stage.sampler.name, stage.sampler.options)
    options += [f"{where}.sampler.{saving}" for saving in sampler.savings]
    if stage.prompts_per_step > 1:
        options.append(f"{where}.prompts_per_step={max(1, stage.prompts_per_step // 2)}")
    return options


def remedies(plan: Plan, options: list[str], again: Again) -> list[Remedy]:
    """The changes that save memory, and, where none is enough alone, a combination of them.

    Args:
        plan: of the recipe as it is.
        options: overrides to try.
        again: plans with overrides.

    Returns:
        The changes that save something, with those that fit first and the combination last.
    """
    tried = [_try(plan, [option], again) for option in options]
    useful = [remedy for remedy in tried if remedy.saves > 0]
    useful.sort(key=lambda remedy: not remedy.fits)
    if any(remedy.fits for remedy in useful):
        return useful
    combined: list[str] = []
    best = plan.peak.total
    for option in options:
        planned = again([*combined, option])
        if planned.peak.total < best:
            combined, best = [*combined, option], planned.peak.total
        if planned.verdict != "does not fit":
            break
    if len(combined) > 1:
        useful.append(_try(plan, combined, again))
    return useful


def _try(plan: Plan, overrides: list[str], again: Again) -> Remedy:
    planned = again(overrides)
    saves = plan.peak.total - planned.peak.total
    return Remedy(tuple(overrides), saves, planned.verdict != "does not fit")
