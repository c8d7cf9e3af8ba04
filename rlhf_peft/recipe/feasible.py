"""Finds settings that contradict each other or this machine before any stage has trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ..errors import Problem, RecipeError
from .schema import Recipe, RlStage


class Factory(Protocol):
    """Makes registered things; see `registry.Registry`."""

    def make(self, kind: str, name: str, options: Mapping[str, Any]) -> Any:
        """Make a registered thing with these options."""
        ...


def check_settings(recipe: Recipe, registry: Factory | None = None, *, here: bool = True) -> None:
    """Refuse settings that contradict each other or this machine. No model is loaded.

    Args:
        recipe: the recipe that is to be run.
        registry: makes the algorithms, which know the settings they use; None: this is not checked.
        here: whether the recipe is to be run on this machine.

    Raises:
        RecipeError: lists every such setting.
    """
    problems = [*_lengths(recipe), *(_optimizers(recipe) if here else ())]
    if registry is not None:
        problems += _unused(recipe, registry)
    if problems:
        raise RecipeError(recipe.name, problems)


def _unused(recipe: Recipe, registry: Factory) -> Iterator[Problem]:
    """Settings of RL stages that their algorithm does not use."""
    for stage in recipe.stages:
        if not isinstance(stage, RlStage):
            continue
        name = stage.algorithm.name
        algorithm = registry.make("algorithms", name, stage.algorithm.options)
        if algorithm.value is None and stage.value_learning_rate is not None:
            yield Problem(
                f"stages.{stage.name}.value_learning_rate",
                f"{name} has no value role, so this rate would be ignored. Leave it out.",
            )
        if algorithm.value is None and "value" in stage.init:
            yield Problem(
                f"stages.{stage.name}.init.value",
                f"{name} has no value role, so it would be ignored. Leave it out.",
            )
        if "reference" not in algorithm.roles and stage.kl_limit is not None:
            yield Problem(
                f"stages.{stage.name}.kl_limit",
                f"{name} with these options needs no reference, so the KL is not measured and the limit would be "
                "ignored. Set algorithm.beta above 0, or leave kl_limit out.",
            )


def _lengths(recipe: Recipe) -> Iterator[Problem]:
    most = recipe.model.max_length
    for stage in recipe.stages:
        if not isinstance(stage, RlStage) or most is None:
            continue
        max_new_tokens = _max_new_tokens(stage.sampler.options)
        if max_new_tokens is not None and max_new_tokens >= most:
            yield Problem(
                f"stages.{stage.name}.sampler.max_new_tokens",
                f"{max_new_tokens:,} leaves no room for a prompt in model.max_length, {most:,}. Set it lower, or "
                "max_length higher.",
            )


def _max_new_tokens(options: Mapping[str, Any]) -> int | None:
    """The option of a sampler, or of the sampler inside it."""
    value = options.get("max_new_tokens")
    if isinstance(value, int):
        return value
    inner = [_max_new_tokens(option) for option in options.values() if isinstance(option, Mapping)]
    return next((number for number in inner if number is not None), None)


def _optimizers(recipe: Recipe) -> Iterator[Problem]:
    stages = [stage for stage in recipe.stages if stage.optimizer != "adamw"]
    if not stages:
        return
    import torch

    if torch.cuda.is_available() and recipe.device != "cpu":
        return
    for stage in stages:
        yield Problem(
            f"stages.{stage.name}.optimizer",
            f"{stage.optimizer} needs a CUDA GPU, and the run would be on another device. Use "
            f"stages.{stage.name}.optimizer=adamw.",
        )
