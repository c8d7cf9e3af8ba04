"""From a recipe to the specification of its base, with its quantizer and those that read stored checkpoints."""

from __future__ import annotations

from ..engine import BaseSpec
from ..errors import PluginError
from ..kit.quantizer import Quantizer
from ..recipe import Recipe
from .core import Registry


def chosen_quantizer(recipe: Recipe, registry: Registry) -> Quantizer:
    """Make the quantizer that a recipe names, with its options.

    Raises:
        PluginError: its name is unknown, its options are wrong, or it could not be made.
    """
    section = recipe.model.quantization
    quantizer: Quantizer = registry.make("quantizers", section.name, section.options)
    return quantizer


def readers(registry: Registry) -> tuple[Quantizer, ...]:
    """One quantizer of each name with its default options, to find out which of them reads a stored checkpoint.

    Quantizers that cannot be made without options are left out.
    """
    quantizers = []
    for name in registry.names("quantizers"):
        try:
            quantizers.append(registry.make("quantizers", name))
        except PluginError:
            continue
    return tuple(quantizers)


def base_spec(recipe: Recipe, registry: Registry, *, trust_remote_code: bool = False) -> BaseSpec:
    """The specification of a recipe's base: its model, its quantizer, its dtype and its device.

    Args:
        recipe: checked.
        registry: makes the quantizer.
        trust_remote_code: run code from the model's repository.

    Raises:
        PluginError: there is no such quantizer, or it could not be made.
    """
    model = recipe.model
    return BaseSpec(
        path=model.path,
        revision=model.revision,
        quantizer=chosen_quantizer(recipe, registry),
        readers=readers(registry),
        compute_dtype=model.compute_dtype,
        attn_implementation=model.attn_implementation,
        device=recipe.device,
        trust_remote_code=trust_remote_code,
    )
