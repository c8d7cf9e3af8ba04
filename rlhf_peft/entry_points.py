"""The entry points of installed distributions, read from their metadata alone: nothing is imported here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

PLUGINS = "rlhf_peft"
COMMANDS = "rlhf_peft.commands"
RECIPES = "rlhf_peft.recipes"
DISABLE = "RLHF_PEFT_DISABLE_PLUGINS"


@dataclass(frozen=True)
class Point:
    """One entry point.

    Attributes:
        name: as its distribution gives it.
        distribution: canonical name of its distribution; "unknown" where the metadata does not say.
        version: of the distribution.
        disabled: whether `RLHF_PEFT_DISABLE_PLUGINS` names it, its distribution, or `all`.
        source: as `importlib.metadata` has it.
    """

    name: str
    distribution: str
    version: str
    disabled: bool
    source: importlib.metadata.EntryPoint

    def load(self) -> Any:
        """Import the object that it names; may raise anything."""
        return self.source.load()

    def folder(self) -> Path | None:
        """The folder of the package that it names, without importing it; None where there is none."""
        top, *rest = self.source.value.partition(":")[0].strip().split(".")
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return None
        search_locations = spec.submodule_search_locations if spec else None
        folders = (Path(place, *rest) for place in search_locations or ())
        return next((folder for folder in folders if folder.is_dir()), None)


def points(group: str) -> Iterator[Point]:
    """The entry points of a group, sorted by distribution and name; one that is twice on the path is yielded once."""
    left_out = disabled_names()
    by_owner: dict[tuple[str, str], Point] = {}
    for point in importlib.metadata.entry_points(group=group):
        distribution, version = _owner(point)
        disabled = bool(left_out & {"all", canonicalize_name(point.name), distribution})
        by_owner.setdefault(
            (distribution, point.name), Point(point.name, distribution, version, disabled, point)
        )
    yield from (by_owner[key] for key in sorted(by_owner))


def disabled_names() -> frozenset[str]:
    """The names in `RLHF_PEFT_DISABLE_PLUGINS`, in canonical form."""
    names = os.environ.get(DISABLE, "").split(",")
    return frozenset(canonicalize_name(name.strip()) for name in names if name.strip())


def _owner(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """The distribution of an entry point and its version; ("unknown", "") where the metadata is damaged."""
    try:
        # importlib_metadata, where a program has put it in the place of Python's own, raises or, before 9, gives None.
        metadata: Any = point.dist.metadata if point.dist is not None else None
    except FileNotFoundError:
        metadata = None
    if metadata is None:
        return "unknown", ""
    return canonicalize_name(metadata.get("Name") or "unknown"), metadata.get("Version") or ""
