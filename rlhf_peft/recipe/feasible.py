"""Settings that contradict each other or this machine: said at once, and not after earlier stages have trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import Problem, RecipeError
from .schema import Recipe, RlStage


def check_settings(recipe: Recipe, *, here: bool = True) -> None:
    """Refuse settings that contradict each other or this machine; no model is needed to know.

    Args:
        recipe: that is to be run.
        here: it is to be run on this machine.

    Raises:
        RecipeError: with every such setting.
    """
    problems = [*_lengths(recipe), *(_optimizers(recipe) if here else ())]
    if problems:
        raise RecipeError(recipe.name, problems)


def _lengths(recipe: Recipe) -> Iterator[Problem]:
    most = recipe.model.max_length
    for stage in recipe.stages:
        if not isinstance(stage, RlStage) or most is None:
            continue
        found = _max_new_tokens(stage.sampler.options)
        if found is not None and found >= most:
            yield Problem(
                f"stages.{stage.name}.sampler.max_new_tokens",
                f"{found:,} leaves no room for a prompt in model.max_length, {most:,}. Set it lower, or max_length "
                "higher.",
            )


def _max_new_tokens(options: Mapping[str, Any]) -> int | None:
    """Of a sampler, or of the one inside it."""
    found = options.get("max_new_tokens")
    if isinstance(found, int):
        return found
    inner = [_max_new_tokens(value) for value in options.values() if isinstance(value, Mapping)]
    return next((value for value in inner if value is not None), None)


def _optimizers(recipe: Recipe) -> Iterator[Problem]:
    wanting = [stage for stage in recipe.stages if stage.optimizer != "adamw"]
    if not wanting:
        return
    import torch

    if torch.cuda.is_available() and recipe.device != "cpu":
        return
    for stage in wanting:
        yield Problem(
            f"stages.{stage.name}.optimizer",
            f"{stage.optimizer} needs a CUDA GPU, and the run would be on another device. Use "
            f"stages.{stage.name}.optimizer=adamw.",
        )
