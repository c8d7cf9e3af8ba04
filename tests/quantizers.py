"""Quantizers as a recipe names them, for tests that load a base without a recipe."""

from rlhf_peft.registry import Registry
from rlhf_peft.registry.bases import readers

REGISTRY = Registry.load(no_plugins=True)


def held_as(name: str, **options) -> dict:
    """What `BaseSpec` is given, so that weights are held by this quantizer."""
    return {"quantizer": REGISTRY.make("quantizers", name, options), "readers": readers(REGISTRY)}
