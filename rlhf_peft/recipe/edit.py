"""Writes overrides into the text of a recipe, and keeps its comments where that is possible."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from ..errors import RecipeError
from ..redact import scrub
from .dump import to_yaml
from .load import load, open_source
from .overrides import apply_overrides
from .paths import resolve_paths
from .places import value_at
from .source import Loc, RecipeText, parse


def edit_text(source: str, overrides: Iterable[str] = ()) -> str:
    """The text of a recipe with overrides applied, and with absolute paths so that it can be saved in another folder.

    Values that the recipe already has are replaced in place; if a key is new, the whole recipe is written anew. The
    opening comment says what it was made from.

    Args:
        source: a path or the name of a shipped recipe.
        overrides: `K=V`.

    Raises:
        UsageError: there is no such recipe, or the result is no valid recipe.
    """
    overrides = list(overrides)
    load(source, overrides)
    recipe_text = open_source(source)
    override_locs, problems = apply_overrides(recipe_text.data, overrides)
    if problems:
        raise RecipeError(recipe_text.label, problems)
    changed = [*override_locs, *resolve_paths(recipe_text.data, recipe_text.folder, override_locs)]
    text = _spliced(recipe_text, changed) or to_yaml(recipe_text.data)
    return _header(source, overrides) + text.removeprefix(_opening(text))


def _header(source: str, overrides: list[str]) -> str:
    """The opening comment of the copy; the original comment may no longer be true."""
    changed = f", with {' '.join(overrides)}" if overrides else ""
    return "".join(f"# {line}\n" for line in scrub(f"From the recipe {source}{changed}.").splitlines())


def _spliced(source: RecipeText, changed: Iterable[Loc]) -> str | None:
    """The text with the changed values replaced in place, or None if that does not give the same recipe."""
    text = source.text
    changed_locs = set(changed)
    if not changed_locs <= source.spans.keys():
        return None
    for loc in sorted(changed_locs, key=lambda loc: source.spans[loc], reverse=True):
        start, end = source.spans[loc]
        text = text[:start] + _scalar(value_at(source.data, loc)) + text[end:]
    try:
        same = parse(text, source.label).data == source.data
    except RecipeError:
        return None
    return text if same else None


def _scalar(value: Any) -> str:
    return to_yaml({"k": copy.deepcopy(value)}).removeprefix("k:").strip()


def _opening(text: str) -> str:
    lines = []
    for line in text.splitlines(keepends=True):
        if line.strip() and not line.startswith("#"):
            break
        lines.append(line)
    return "".join(lines)
