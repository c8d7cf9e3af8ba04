"""Forecasts the memory of a recipe: its plan, and changes that would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..engine import BaseSpec
from ..engine.base_spec import resolve_device
from ..errors import DataError, ModelError, UsageError
from ..recipe import Recipe, RlStage, StageBase, load
from ..registry import Registry, base_spec, chosen_quantizer
from .gpus import Budget, budget
from .lengths import evaluated, longest
from .plan import Plan
from .planner import Planner
from .remedies import Remedy, candidates, remedies
from .shape import read_shape

FEW_BITS = 4
"""Weights with at most this many bits cost quality."""


@dataclass(slots=True)
class Forecast:
    """A plan, and, where it is tight or does not fit, the changes of the recipe that help."""

    plan: Plan
    remedies: list[Remedy]


def forecast(
    recipe: Recipe, registry: Registry, *, gpu: str | None = None, trust_remote_code: bool = False
) -> Forecast:
    """Plan a recipe for a card, or for this machine.

    Raises:
        UsageError: the card, the model's configuration or local data cannot be used.
    """
    first, again = planned(recipe, registry, gpu, trust_remote_code)
    if first.verdict == "fits":
        first.notes += _whole_precision(recipe, registry, again)
        return Forecast(first, [])
    tries = candidates(recipe, registry, gpu=first.budget.device == "cuda")
    return Forecast(first, remedies(first, tries, again))


def precision_notes(recipe: Recipe, registry: Registry) -> list[str]:
    """A note of `plan` where the model would fit on this machine without 4 bits too; otherwise an empty list.

    Only models that are already on this machine are planned: nothing is downloaded.
    """
    if not _few_bits(recipe, registry) or not Path(BaseSpec(recipe.model.path).location).is_dir():
        return []
    with suppress(ModelError, UsageError, DataError):
        first, again = planned(recipe, registry, None, trust_remote_code=False)
        return _whole_precision(recipe, registry, again) if first.verdict == "fits" else []
    return []


Again = Callable[[Sequence[str]], Plan]
"""A function from overrides to the plan of the recipe with them."""


def planned(
    recipe: Recipe, registry: Registry, gpu: str | None, trust_remote_code: bool = False
) -> tuple[Plan, Again]:
    """The plan of a recipe, and a function that plans it again with overrides."""
    device = resolve_device(recipe.device).type if gpu is None else "cuda"
    room = budget(gpu, device)
    known: dict[tuple[str, int], tuple[int, str]] = {}
    counted: dict[tuple[str, int], int] = {}

    def plan(changed: Recipe) -> Plan:
        source = _source(changed, registry, room, trust_remote_code)
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

        return Planner(changed, shape, registry, room, lengths, answered).plan()

    def again(overrides: Sequence[str]) -> Plan:
        return plan(load(recipe.model_dump(mode="json", exclude_none=True), overrides, plugins=registry))

    return plan(recipe), again


def _few_bits(recipe: Recipe, registry: Registry) -> bool:
    """Whether the recipe quantizes weights to so few bits that it costs quality."""
    bits = chosen_quantizer(recipe, registry).bits
    return bits is not None and bits <= FEW_BITS


def _whole_precision(recipe: Recipe, registry: Registry, again: Again) -> list[str]:
    """A note where a recipe that fits would also fit without 4 bits, which cost quality; otherwise an empty list."""
    if not _few_bits(recipe, registry):
        return []
    whole = again(["model.quantization=none"])
    if whole.verdict != "fits":
        return []
    return [
        f"it fits without quantization too ({whole.peak.total / 2**30:.1f} GB at the peak): model.quantization=none. "
        "4 bits cost quality, most in small models: 0.26 nats a token in SmolLM2-135M"
    ]


def _source(recipe: Recipe, registry: Registry, room: Budget, trust_remote_code: bool) -> BaseSpec:
    dtype = recipe.model.compute_dtype
    if dtype == "auto":
        dtype = "bfloat16" if room.device == "cuda" and room.bf16 else "float32"
    spec = base_spec(recipe, registry, trust_remote_code=trust_remote_code)
    return replace(spec, compute_dtype=dtype)
