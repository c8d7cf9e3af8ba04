"""Checks and loads what a run needs, before it begins: its base, its data, its samplers and its trackers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch

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
    """Load the shared base of a recipe.

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
    device = resolve_device(spec.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # What names no index (accelerate, plugins) means this one from now on.
    cap(device)
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
    """Read every dataset of a recipe and check that its stage can use it; yields one line of text for each.

    Args:
        recipe: that is checked.
        registry: makes registered datasets; None: with all installed plugins.
        encode: encode the rows too, where the tokenizer is on this machine, and count those that can be used.

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
            source_name = source.path or str(source.name)
            format = require(rows, method, source_name, stage=stage.name, warn=encode)
            kind = f"{'conversational ' if format.conversational else ''}{format.kind}"
            encoder = offline_encoder(recipe, source) if encode else None
            usable = None if encoder is None else usable_rows(rows, format, stage, source, encoder, registry)
            left_out = "" if usable in (None, len(rows)) else f", {usable:,} of them usable"
            yield f"{stage.name}: {source_name} {split or source.split}: {len(rows):,} rows, {kind}{left_out}"


def check_samplers(recipe: Recipe, *, registry: Registry | None = None, done: Collection[str] = ()) -> None:
    """Check that what the samplers of a recipe need is available, such as a server, before the model is loaded.

    Args:
        recipe: from `load_recipe`.
        registry: makes the samplers.
        done: names of finished stages, whose samplers are not checked.

    Raises:
        SamplerError: it is not available.
    """
    registry = registry or Registry.load()
    for stage in recipe.stages:
        if isinstance(stage, RlStage) and stage.name not in done:
            sampler_ready(registry, stage.sampler.name, stage.sampler.options)


def sampler_ready(registry: Registry, name: str, options: Mapping[str, Any]) -> None:
    """Check that what one sampler needs is available.

    Args:
        registry: makes the sampler.
        name: of the sampler.
        options: of the sampler.

    Raises:
        SamplerError: it is not available.
    """
    sampler = registry.make("samplers", name, options)
    if hasattr(sampler, "ready"):
        sampler.ready()


def check_tracking(recipe: Recipe) -> None:
    """Refuse a tracker that is not installed, before anything is loaded.

    Raises:
        UsageError: a tracker of the recipe is not installed.
    """
    from accelerate.tracking import get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    for name in recipe.tracking:
        if name not in available:
            raise UsageError(f"tracking: {name} is not installed here. Type:  pip install {name}")
