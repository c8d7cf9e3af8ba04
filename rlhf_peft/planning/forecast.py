"""From a recipe to its plan, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..engine import BaseSpec
from ..engine.base_spec import resolve_device
from ..errors import DataError, ModelError, UsageError
from ..recipe import Recipe, RlStage, StageBase, load
from ..registry import Registry
from .gpus import Budget, budget
from .lengths import evaluated, longest
from .plan import Plan, make_plan
from .remedies import Remedy, candidates, remedies
from .shape import read_shape


@dataclass(slots=True)
class Forecast:
    """A plan, and where it does not fit or is tight the changes that help."""

    plan: Plan
    remedies: list[Remedy]


def forecast(
    recipe: Recipe, registry: Registry, *, gpu: str | None = None, trust_remote_code: bool = False
) -> Forecast:
    """Plan a recipe for a card, or for this machine.

    Raises:
        UsageError: the card, the model's configuration or local data cannot be used.
    """
    first, again = _planned(recipe, registry, gpu, trust_remote_code)
    if first.verdict == "fits":
        first.notes += _whole_precision(recipe, again)
        return Forecast(first, [])
    tries = candidates(recipe, gpu=first.budget.device == "cuda")
    return Forecast(first, remedies(first, tries, again))


def precision_notes(recipe: Recipe, registry: Registry) -> list[str]:
    """What `plan` says where the model would fit on this machine without 4 bits too; [] where that is not known.

    It is known of models that are on this machine: nothing is downloaded.
    """
    if not _few_bits(recipe) or not Path(BaseSpec(recipe.model.path).location).is_dir():
        return []
    with suppress(ModelError, UsageError, DataError):
        first, again = _planned(recipe, registry, None, trust_remote_code=False)
        return _whole_precision(recipe, again) if first.verdict == "fits" else []
    return []


Again = Callable[[Sequence[str]], Plan]
"""Plans a recipe with overrides."""


def _planned(
    recipe: Recipe, registry: Registry, gpu: str | None, trust_remote_code: bool
) -> tuple[Plan, Again]:
    """A recipe's plan, and what plans it again with overrides."""
    there = resolve_device(recipe.device).type if gpu is None else "cuda"
    room = budget(gpu, there)
    known: dict[tuple[str, int], tuple[int, str]] = {}
    counted: dict[tuple[str, int], int] = {}

    def plan(changed: Recipe) -> Plan:
        source = _source(changed, room, trust_remote_code)
        shape = read_shape(source, torch.device(room.device) if gpu is None else torch.device("cuda"))

        def lengths(stage: StageBase, limit: int) -> tuple[int, str]:
            if (stage.name, limit) not in known:
                known[stage.name, limit] = longest(stage, changed, registry, source, limit)
            return known[stage.name, limit]

        def answered(stage: RlStage) -> int:
            key = stage.name, stage.eval.size
            if key not in counted:
                counted[key] = evaluated(stage, changed, registry)
            return counted[key]

        return make_plan(changed, shape, registry, room, lengths, answered)

    def again(overrides: Sequence[str]) -> Plan:
        return plan(load(recipe.model_dump(mode="json", exclude_none=True), overrides, plugins=registry))

    return plan(recipe), again


def _few_bits(recipe: Recipe) -> bool:
    return recipe.model.quantization in ("nf4", "fp4")


def _whole_precision(recipe: Recipe, again: Again) -> list[str]:
    """A note where the model of a recipe that fits would fit without 4 bits too, which cost quality."""
    if not _few_bits(recipe):
        return []
    whole = again(["model.quantization=none"])
    if whole.verdict != "fits":
        return []
    return [
        f"it fits without quantization too ({whole.peak.total / 2**30:.1f} GB at the peak): model.quantization=none. "
        "4 bits cost quality, most in small models: 0.26 nats a token in SmolLM2-135M"
    ]


def _source(recipe: Recipe, room: Budget, trust_remote_code: bool) -> BaseSpec:
    model = recipe.model
    dtype = model.compute_dtype
    if dtype == "auto":
        dtype = "bfloat16" if room.device == "cuda" and room.bf16 else "float32"
    return BaseSpec(
        path=model.path,
        revision=model.revision,
        quantization=model.quantization,
        double_quantization=model.double_quantization,
        compute_dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
