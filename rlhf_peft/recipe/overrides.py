"""Applies `K=V` from the command line: dotted keys, list items by name, values parsed as YAML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import Problem, RecipeError
from .places import label
from .source import Loc, describe, parse_value


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> tuple[list[Loc], list[Problem]]:
    """Write each `K=V` into the data.

    Returns:
        The locations that were written, and the problems of the overrides that could not be applied.
    """
    written_locs: list[Loc] = []
    problems: list[Problem] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        try:
            if not equals or not key or not all(key.split(".")):
                raise _Refused(f"expected K=V with a dotted key, such as seed=3, found {describe(override)}")
            value = parse_value(text, key)
            written_locs.append(_write(data, key.split("."), value))
        except _Refused as error:
            problems.append(Problem(key or "override", str(error)))
        except RecipeError as error:
            problems.extend(error.problems)
    return written_locs, problems


class _Refused(Exception):
    """An override cannot be applied; the message says why."""


def _write(data: dict[str, Any], parts: Sequence[str], value: Any) -> Loc:
    """Write a value at a dotted key, and make missing sections; returns its location."""
    node: Any = data
    loc: Loc = ()
    used_parts = 0
    while True:
        part, step_parts = _step(node, parts[used_parts:], ".".join(parts[:used_parts]))
        loc, used_parts = (*loc, part), used_parts + step_parts
        if used_parts == len(parts):
            node[part] = value
            return loc
        inner = node[part] if isinstance(part, int) else node.get(part)
        if inner is None:
            inner = node[part] = {}
        node = inner


def _step(node: Any, parts: Sequence[str], before: str) -> tuple[str | int, int]:
    """The next key or index, and how many parts of the dotted key it takes (names may contain dots)."""
    if isinstance(node, dict):
        return parts[0], 1
    if not isinstance(node, list):
        raise _Refused(f"{before} is {describe(node)}, which has no key {parts[0]}")
    if not node:
        raise _Refused(
            f"{before} is an empty list, so it has no {parts[0]}; give it whole, such as {before}='[a, b]'"
        )
    if not any(isinstance(item, dict) for item in node):
        raise _Refused(f"{before} is a list of plain values; give it whole, such as {before}='[a, b]'")
    for used in range(len(parts), 0, -1):
        index = _find(node, ".".join(parts[:used]), before)
        if index is not None:
            return index, used
    raise _Refused(f"{before} has no {parts[0]}; it has {_names(node)}")


def _find(items: Sequence[Any], name: str, before: str) -> int | None:
    """Index of the only item with that name, or with that stage kind if no item has the name."""
    named = [index for index, item in enumerate(items) if label(item) == name]
    kinds = [i for i, item in enumerate(items) if isinstance(item, dict) and item.get("stage") == name]
    matches = named or kinds
    if len(matches) > 1:
        raise _Refused(f"{len(matches)} items of {before} are called {name}; give each its own `name`")
    return matches[0] if matches else None


def _names(items: Sequence[Any]) -> str:
    names = [name for name in (label(item) for item in items) if name]
    return ", ".join(names) if names else "no named items"
