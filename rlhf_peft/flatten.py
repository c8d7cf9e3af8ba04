"""The keys of a recipe as the command line writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def recipe_keys(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key to value of every leaf, such as `stages.rl.rewards.length.weight`.

    Args:
        recipe: as plain data. Lists whose items have a name (stages, rewards) are addressed by it; others
            are leaves.
    """
    return dict(_leaves(recipe, ""))


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif (
        isinstance(value, list)
        and value
        and all(isinstance(item, Mapping) and "name" in item for item in value)
    ):
        for inner in value:
            rest = {name: item for name, item in inner.items() if name != "name" or "stage" not in inner}
            yield from _leaves(rest, f"{key}.{inner['name']}")
    else:
        yield key, value
