"""From a file, a shipped name or a mapping to a checked `Recipe`: everything that is wrong is said at once.

The order: read, override, make paths absolute, check the schema and every plugin's options, fill in defaults.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from ..errors import PluginError, Problem, RecipeError
from . import shipped
from .former import move_former_keys
from .messages import keys_of, rewrite, unknown_key
from .overrides import apply_overrides
from .paths import resolve_paths
from .places import OpenPlace, at, dotted, open_places
from .schema import RESERVED, Recipe
from .source import Loc, RecipeText, describe, parse, read_text

VERSION = 1


class Plugins(Protocol):
    """What the loader asks of the registry; without one, plugin options are taken as they are."""

    def options_model(self, kind: str, name: str) -> type[BaseModel]:
        """The options of something registered; PluginError where the name is unknown."""
        ...

    def check_requirement(self, requirement: str) -> str | None:
        """What is wrong with a requirement of the recipe's `plugins`, or None."""
        ...


def load(
    source: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    plugins: Plugins | None = None,
    rewards: Sequence[str] = (),
) -> Recipe:
    """A checked recipe with every default, those of plugins too where a registry is given.

    Args:
        source: a path (it holds a `/` or ends in `.yaml`), the name of a shipped recipe, or a mapping.
        overrides: `K=V`, dotted; paths in them start at the current folder.
        plugins: the registry.
        rewards: registered rewards that every RL stage gets, with weight 1, where it does not name them.

    Raises:
        UsageError: there is no such recipe.
        RecipeError: all that is wrong with it.
    """
    read = open_source(source)
    # Before the overrides, which may be for these entries, and after them, which may replace the list.
    _add_rewards(read.data, rewards)
    written, problems = apply_overrides(read.data, overrides)
    check = _Check(read, written, problems)
    check.version()
    _add_rewards(read.data, rewards)
    move_former_keys(read.data)
    resolve_paths(read.data, read.folder, written)
    recipe = check.schema()
    resolved = check.plugins(plugins)
    check.finish()
    assert recipe is not None
    return recipe if plugins is None else _with_defaults(read.data, resolved)


def open_source(source: str | Path | Mapping[str, Any]) -> RecipeText:
    """A recipe as it stands in its file, unchecked."""
    if isinstance(source, Mapping):
        return RecipeText("recipe", copy.deepcopy(dict(source)))
    if isinstance(source, str) and not is_path(source):
        return parse(shipped.text(source), source, shipped.path(source).parent)
    path = Path(source)
    return parse(read_text(path), str(source), path.absolute().parent)


def is_path(source: str) -> bool:
    """Whether a RECIPE argument is a path; else it is the name of a shipped recipe."""
    return "/" in source or "\\" in source or source.lower().endswith((".yaml", ".yml"))


class _Check:
    """Collects what is wrong with one recipe, each with its key and line."""

    def __init__(self, source: RecipeText, written: Sequence[Loc], problems: list[Problem]) -> None:
        self.source = source
        self.data = source.data
        self.written = written
        self.problems = problems

    def add(self, loc: Loc, message: str) -> None:
        self.problems.append(Problem(dotted(self.data, loc), message, self.line(loc)))

    def line(self, loc: Loc) -> int | None:
        """The line of a place, or of the nearest section around it; None for what the command line gave."""
        if any(loc[: len(place)] == place for place in self.written):
            return None
        while loc and loc not in self.source.lines:
            loc = loc[:-1]
        return self.source.lines.get(loc)

    def version(self) -> None:
        """Refuse at once what was written for another version: nothing else can be said of it."""
        found = self.data.get("version")
        if found is None or (type(found) is int and found == VERSION):
            return
        if type(found) is int and found > VERSION:
            advice = "It was written for a later rlhf-peft: upgrade with pip install -U rlhf-peft."
        else:
            advice = f"Write version: {VERSION}."
        message = f"this rlhf-peft reads version {VERSION}, found {describe(found)}. {advice}"
        raise RecipeError(self.source.label, [Problem("version", message, self.line(("version",)))])

    def schema(self) -> Recipe | None:
        try:
            return Recipe.model_validate(self.data)
        except ValidationError as error:
            for loc, message in rewrite(error.errors(include_url=False), Recipe, self.data):
                hint = f" Write version: {VERSION}." if loc == ("version",) else ""
                self.add(loc, message + hint)
            return None

    def plugins(self, plugins: Plugins | None) -> dict[Loc, dict[str, Any]]:
        """Check all that plugins own; returns each section's options with every default."""
        resolved: dict[Loc, dict[str, Any]] = {}
        for loc in _datasets_with_path(self.data):
            self.unknown_dataset_keys(loc)
        if plugins is None:
            return resolved
        required = self.data.get("plugins")
        for index, requirement in enumerate(required if isinstance(required, list) else []):
            reason = plugins.check_requirement(requirement) if isinstance(requirement, str) else None
            if reason:
                self.add(("plugins", index), reason)
        for place in open_places(self.data, RESERVED):
            options = self.options(place, plugins)
            if options is not None:
                resolved[place.loc] = options
        return resolved

    def options(self, place: OpenPlace, plugins: Plugins) -> dict[str, Any] | None:
        try:
            model = plugins.options_model(place.kind, place.name)
        except PluginError as error:
            short = isinstance(at(self.data, place.loc), str)
            self.add(place.loc if short else (*place.loc, "name"), str(error))
            return None
        try:
            return model.model_validate(place.options).model_dump(mode="json", by_alias=True)
        except ValidationError as error:
            errors = error.errors(include_url=False)
        own = RESERVED[place.kind]
        for loc, message in rewrite(errors, model, place.options):
            if len(loc) == 1 and loc[0] in place.options and message.startswith("unknown key"):
                message = unknown_key(str(loc[0]), [*keys_of(model), *own], place.loc)
            self.add((*place.loc, *loc), message)
        return None

    def unknown_dataset_keys(self, loc: Loc) -> None:
        known = RESERVED["datasets"]
        section = at(self.data, loc)
        for key in section if isinstance(section, Mapping) else ():
            if key not in known:
                self.add((*loc, key), unknown_key(str(key), known, loc))

    def finish(self) -> None:
        if self.problems:
            last = len(self.source.lines) + len(self.source.text) + 1
            ordered = sorted(self.problems, key=lambda p: p.line if p.line is not None else last)
            raise RecipeError(self.source.label, ordered)


def _datasets_with_path(data: dict[str, Any]) -> list[Loc]:
    """Dataset sections that no registered dataset can claim the keys of."""
    found: list[Loc] = []
    stages = data.get("stages")
    for index in range(len(stages) if isinstance(stages, list) else 0):
        for loc in (("stages", index, "dataset"), ("stages", index, "eval", "dataset")):
            section = at(data, loc)
            if isinstance(section, Mapping) and (
                section.get("path") is not None or section.get("name") is None
            ):
                found.append(loc)
    return found


def _add_rewards(data: dict[str, Any], rewards: Sequence[str]) -> None:
    stages = data.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        if not isinstance(stage, dict) or stage.get("stage") != "rl":
            continue
        entries = stage.get("rewards") or []
        if isinstance(entries, list):
            named = [entry.get("name") for entry in entries if isinstance(entry, dict)]
            stage["rewards"] = [*entries, *({"name": name} for name in rewards if name not in named)]


def _with_defaults(data: dict[str, Any], resolved: Mapping[Loc, dict[str, Any]]) -> Recipe:
    filled = copy.deepcopy(data)
    for loc, options in resolved.items():
        section = at(filled, loc)
        if isinstance(section, dict):  # else a name alone, which stays one
            section.update(options)
    return Recipe.model_validate(filled)


__all__ = ["VERSION", "Plugins", "is_path", "load", "open_source"]
