"""What is checked and loaded before a run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ..data import require
from ..engine import SharedBase, cap
from ..engine.base_spec import resolve_device
from ..errors import UsageError
from ..recipe import DatasetSource, Recipe, RlStage
from ..registry import Registry, base_spec
from ..stages import lora_spec, method_of, offline_encoder, read_source, usable_rows


def load_base(
    recipe: Recipe,
    *,
    trust_remote_code: bool = False,
    allow_changed: Collection[str] = (),
    registry: Registry | None = None,
) -> SharedBase:
    """The shared base that a recipe asks for.

    Args:
        recipe: checked.
        trust_remote_code: run code from the model's repository.
        allow_changed: what may differ from the base of adapters that are loaded.
        registry: makes the quantizer; None: with all installed plugins.

    Raises:
        ModelError: the model, its tokenizer or its quantization cannot be used here.
        PluginError: the quantizer is unknown or could not be made.
    """
    spec = base_spec(recipe, registry or Registry.load(), trust_remote_code=trust_remote_code)
    cap(resolve_device(spec.device))
    model = recipe.model
    return SharedBase(
        spec,
        lora_spec(recipe.lora),
        seed=recipe.seed,
        max_length=model.max_length,
        gradient_checkpointing=model.gradient_checkpointing,
        merge_rollouts=model.merge_rollouts,
        fast=model.fast,
        accepted=tuple(allow_changed),
    )


def check_data(recipe: Recipe, *, registry: Registry | None = None, encode: bool = True) -> Iterator[str]:
    """Read every dataset of a recipe and see whether its stage can use it; one line each.

    Raises:
        DataError: one is missing, malformed, empty, or in another format than its stage needs.
    """
    registry = registry or Registry.load()
    for stage in recipe.stages:
        method = method_of(stage)
        sources: list[tuple[DatasetSource, str | None]] = [(stage.dataset, None)]
        if stage.eval.dataset is not None:
            sources.append((stage.eval.dataset, stage.eval.split))
        elif stage.eval.split is not None:
            sources.append((stage.dataset, stage.eval.split))
        for source, split in sources:
            rows = read_source(source, registry, split, stage=stage.name)
            called = source.path or str(source.name)
            found = require(rows, method, called, stage=stage.name, warn=encode)
            kind = f"{'conversational ' if found.conversational else ''}{found.kind}"
            encoder = offline_encoder(recipe, source) if encode else None
            usable = None if encoder is None else usable_rows(rows, found, stage, source, encoder, registry)
            left_out = "" if usable in (None, len(rows)) else f", {usable:,} of them usable"
            yield f"{stage.name}: {called} {split or source.split}: {len(rows):,} rows, {kind}{left_out}"


def check_samplers(recipe: Recipe, *, registry: Registry | None = None, done: Collection[str] = ()) -> None:
    """Whether what the samplers of a recipe need is there, such as a server: asked before the model is loaded.

    Args:
        recipe: from `load_recipe`.
        registry: makes the samplers.
        done: stages that sample no more.

    Raises:
        SamplerError: it is not.
    """
    registry = registry or Registry.load()
    for stage in recipe.stages:
        if isinstance(stage, RlStage) and stage.name not in done:
            sampler_ready(registry, stage.sampler.name, stage.sampler.options)


def sampler_ready(registry: Registry, name: str, options: Mapping[str, Any]) -> None:
    """Ask one sampler.

    Args:
        registry: makes it.
        name: of the sampler.
        options: its own.

    Raises:
        SamplerError: what it needs is not there.
    """
    sampler = registry.make("samplers", name, options)
    if hasattr(sampler, "ready"):
        sampler.ready()


def check_tracking(recipe: Recipe) -> None:
    """Refuse a tracker that is not installed, before anything is loaded.

    Raises:
        UsageError: one is not.
    """
    from accelerate.tracking import get_available_trackers

    there = {str(tracker) for tracker in get_available_trackers()}
    for name in recipe.tracking:
        if name not in there:
            raise UsageError(f"tracking: {name} is not installed here. Type:  pip install {name}")
