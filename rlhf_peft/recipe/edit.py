"""A recipe's text with `K=V` written into it, its comments kept where that is possible."""

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
from .places import at
from .source import Loc, RecipeText, parse


def edited(source: str, overrides: Iterable[str] = ()) -> str:
    """The text of a recipe with overrides written in, fit to stand in another folder.

    Values that the recipe has are replaced where they stand; where a key is new, the recipe is written afresh.
    Its opening comment says what it was made from.

    Args:
        source: a path or the name of a shipped recipe.
        overrides: `K=V`.

    Raises:
        UsageError: there is no such recipe, or the result is no recipe.
    """
    overrides = list(overrides)
    load(source, overrides)
    read = open_source(source)
    written, problems = apply_overrides(read.data, overrides)
    if problems:
        raise RecipeError(read.label, problems)
    changed = [*written, *resolve_paths(read.data, read.folder, written)]
    text = _spliced(read, changed) or to_yaml(read.data)
    return _header(source, overrides) + text.removeprefix(_opening(text))


def _header(source: str, overrides: list[str]) -> str:
    """The opening comment of a copy: what was said of the recipe need not be true of it any more."""
    changed = f", with {' '.join(overrides)}" if overrides else ""
    return "".join(f"# {line}\n" for line in scrub(f"From the recipe {source}{changed}.").splitlines())


def _spliced(source: RecipeText, changed: Iterable[Loc]) -> str | None:
    """The text with the changed values in place, or None where that would not give the same recipe."""
    text = source.text
    places = set(changed)
    if not places <= source.spans.keys():
        return None
    for loc in sorted(places, key=lambda loc: source.spans[loc], reverse=True):
        start, end = source.spans[loc]
        text = text[:start] + _scalar(at(source.data, loc)) + text[end:]
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
