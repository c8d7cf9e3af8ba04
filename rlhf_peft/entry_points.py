"""What installed distributions offer, read from their metadata alone: nothing of theirs is imported here."""

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
        distribution: canonical name of who offers it; "unknown" where the metadata does not say.
        version: of the distribution.
        disabled: `RLHF_PEFT_DISABLE_PLUGINS` names it, its distribution, or `all`.
    """

    name: str
    distribution: str
    version: str
    disabled: bool
    source: importlib.metadata.EntryPoint

    def load(self) -> Any:
        """Import what it stands for; whatever that raises."""
        return self.source.load()

    def folder(self) -> Path | None:
        """The folder of the package that it names, found without importing it; None where there is none."""
        top, *rest = self.source.value.partition(":")[0].strip().split(".")
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return None
        places = spec.submodule_search_locations if spec else None
        found = (Path(place, *rest) for place in places or ())
        return next((folder for folder in found if folder.is_dir()), None)


def points(group: str) -> Iterator[Point]:
    """The entry points of a group, by distribution and name; one that is seen twice on the path counts once."""
    off = disabled_names()
    seen: dict[tuple[str, str], Point] = {}
    for point in importlib.metadata.entry_points(group=group):
        distribution, version = _owner(point)
        disabled = bool(off & {"all", canonicalize_name(point.name), distribution})
        seen.setdefault((distribution, point.name), Point(point.name, distribution, version, disabled, point))
    yield from (seen[key] for key in sorted(seen))


def disabled_names() -> frozenset[str]:
    """The names in `RLHF_PEFT_DISABLE_PLUGINS`, in canonical form."""
    words = os.environ.get(DISABLE, "").split(",")
    return frozenset(canonicalize_name(word.strip()) for word in words if word.strip())


def _owner(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Distribution and version; metadata may be damaged."""
    try:
        # importlib_metadata, where a program has put it in the place of Python's own, raises or, before 9, gives None.
        metadata: Any = point.dist.metadata if point.dist is not None else None
    except FileNotFoundError:
        metadata = None
    if metadata is None:
        return "unknown", ""
    return canonicalize_name(metadata.get("Name") or "unknown"), metadata.get("Version") or ""
