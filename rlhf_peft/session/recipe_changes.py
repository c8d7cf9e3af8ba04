"""In what a run that is resumed differs from what it was: by the keys of the recipe, and in words for the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..bounded_read import read_small
from ..engine.fingerprint import DIGEST
from ..flatten import recipe_keys
from ..recipe import Recipe, dump
from ..runs.layout import RECIPE, parsed, without_credentials
from ..runs.manifest import MOST_BYTES
from .fingerprints import FREE, LOADED, MODEL_KEYS

MOST = 8
"""Changed keys that a message names."""
WORDS = {
    "base": "the base model's files are others",
    "chat_template": "the tokenizer's chat template is another",
    "plugins": "other plugins are installed, or other versions of them",
    "recipe": "keys outside of the stages",
}
Keys = Mapping[str, tuple[Any, Any]]
"""Dotted key to its value then and now; None where it was not there."""


def changed_keys(run: Path, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """The keys in which a recipe differs from the one that a run was last written with, where they change results.

    Args:
        run: the run's folder; empty where its recipe cannot be read.
        recipe: of now.
    """
    now = recipe_keys(parsed(without_credentials(dump(recipe))))
    try:
        then = recipe_keys(
            _with_defaults(yaml.safe_load(read_small(run / RECIPE, MOST_BYTES).decode("utf-8")))
        )
    except (OSError, ValueError, AttributeError, yaml.YAMLError, RecursionError):
        return {}
    names = [name for name in [*now, *(then.keys() - now.keys())] if _matters(name)]
    pairs = {name: (then.get(name), now.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _with_defaults(written: Any) -> Any:
    """A recipe with the keys that an earlier version did not know."""
    try:
        return Recipe.model_validate(written).model_dump(mode="json")
    except ValidationError:
        return written


def _matters(key: str) -> bool:
    return key.partition(".")[0] not in FREE and ".checkpoint." not in key


def describe(name: str, before: str | None, now: str | None, keys: Keys) -> str:
    """In what something differs that must not change, in words.

    Args:
        name: of the fingerprint.
        before: the fingerprint that was written down; None: there was none.
        now: the present one.
        keys: all keys of the recipe that have changed.
    """
    own = {key: values for key, values in keys.items() if _belongs(key, name)}
    if own:
        return f"{name} changed ({show_changes(own)})"
    if name.startswith("dataset."):
        return f"{name} changed (the rows that the stage {name.partition('.')[2]} reads are others)"
    if name in WORDS:
        return f"{name} changed ({WORDS[name]})"
    if any(value is not None and DIGEST.fullmatch(value) for value in (before, now)):
        what = "is new" if before is None else "is gone" if now is None else "has another content"
        return f"{name} changed (it {what})"
    return f"{name} changed ({before or 'none'} -> {now or 'none'})"


def show_changes(keys: Keys) -> str:
    """Changed keys with their values, as `stages.rl.learning_rate: 0.001 -> 0.002`."""
    shown = [f"{key}: {_value(then)} -> {_value(now)}" for key, (then, now) in [*keys.items()][:MOST]]
    more = len(keys) - len(shown)
    return ", ".join([*shown, f"and {more} more"] if more > 0 else shown)


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _belongs(key: str, name: str) -> bool:
    """Whether a key of the recipe goes into a fingerprint."""
    if name == "recipe":
        return key in MODEL_KEYS or key.partition(".")[0] not in ("stages", "model")
    if name in LOADED:
        return key.startswith(LOADED[name])
    return key == name or key.startswith(f"{name}.")
