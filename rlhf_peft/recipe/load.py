"""Loads a file, a shipped recipe or a mapping as a checked `Recipe`; all problems are reported at once.

The steps: read, apply overrides, make paths absolute, check the schema and every plugin's options, fill in defaults.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from ..errors import PluginError, Problem, RecipeError
from . import shipped
from .messages import keys_of, rewrite, unknown_key
from .overrides import apply_overrides
from .paths import resolve_paths
from .places import PluginSection, dotted, plugin_sections, value_at
from .renamed_keys import move_renamed_keys
from .schema import RESERVED, Recipe
from .source import Loc, RecipeText, describe, parse, read_text

VERSION = 1


class Plugins(Protocol):
    """What the loader needs of the registry; without one, plugin options are not checked."""

    def options_model(self, kind: str, name: str) -> type[BaseModel]:
        """The options model of something registered; raises PluginError if the name is unknown."""
        ...

    def check_requirement(self, requirement: str) -> str | None:
        """The problem with a requirement in the recipe's `plugins`, or None."""
        ...


def load(
    source: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    plugins: Plugins | None = None,
    rewards: Sequence[str] = (),
) -> Recipe:
    """Load a recipe and check it; every default is filled in, those of plugins only if a registry is given.

    Args:
        source: a path (it contains a `/` or ends in `.yaml`), the name of a shipped recipe, or a mapping.
        overrides: `K=V` with dotted keys; paths in them are relative to the current folder.
        plugins: the registry.
        rewards: registered rewards that every RL stage gets, with weight 1, unless the stage names them.

    Raises:
        UsageError: there is no such recipe.
        RecipeError: lists everything that is wrong with it.
    """
    recipe_text = open_source(source)
    # Before the overrides, which may be for these entries, and after them, which may replace the list.
    _add_rewards(recipe_text.data, rewards)
    override_locs, problems = apply_overrides(recipe_text.data, overrides)
    check = _Check(recipe_text, override_locs, problems)
    check.version()
    _add_rewards(recipe_text.data, rewards)
    move_renamed_keys(recipe_text.data)
    resolve_paths(recipe_text.data, recipe_text.folder, override_locs)
    recipe = check.schema()
    resolved = check.plugins(plugins)
    check.finish()
    assert recipe is not None
    return recipe if plugins is None else _with_defaults(recipe_text.data, resolved)


def open_source(source: str | Path | Mapping[str, Any]) -> RecipeText:
    """Read a recipe without checking it."""
    if isinstance(source, Mapping):
        return RecipeText("recipe", copy.deepcopy(dict(source)))
    if isinstance(source, str) and not is_path(source):
        return parse(shipped.text(source), source, shipped.path(source).parent)
    path = Path(source)
    return parse(read_text(path), str(source), path.absolute().parent)


def is_path(source: str) -> bool:
    """Whether a RECIPE argument is a path; otherwise it is the name of a shipped recipe."""
    return "/" in source or "\\" in source or source.lower().endswith((".yaml", ".yml"))


class _Check:
    """Collects the problems of one recipe, each with its key and line."""

    def __init__(self, source: RecipeText, override_locs: Sequence[Loc], problems: list[Problem]) -> None:
        self.source = source
        self.data = source.data
        self.override_locs = override_locs
        self.problems = problems

    def add(self, loc: Loc, message: str) -> None:
        """Record a problem."""
        self.problems.append(Problem(dotted(self.data, loc), message, self.line(loc)))

    def line(self, loc: Loc) -> int | None:
        """The line of a key, or of the nearest section around it; None if it was set on the command line."""
        if any(loc[: len(written_loc)] == written_loc for written_loc in self.override_locs):
            return None
        while loc and loc not in self.source.lines:
            loc = loc[:-1]
        return self.source.lines.get(loc)

    def version(self) -> None:
        """Raise an error at once for another version of the format, because no other check makes sense then."""
        version = self.data.get("version")
        if version is None or (type(version) is int and version == VERSION):
            return
        if type(version) is int and version > VERSION:
            advice = "It was written for a later rlhf-peft: upgrade with pip install -U rlhf-peft."
        else:
            advice = f"Write version: {VERSION}."
        message = f"this rlhf-peft reads version {VERSION}, found {describe(version)}. {advice}"
        raise RecipeError(self.source.label, [Problem("version", message, self.line(("version",)))])

    def schema(self) -> Recipe | None:
        """Validate the data against the schema; None if there are errors, which are recorded."""
        try:
            return Recipe.model_validate(self.data)
        except ValidationError as error:
            for loc, message in rewrite(error.errors(include_url=False), Recipe, self.data):
                hint = f" Write version: {VERSION}." if loc == ("version",) else ""
                self.add(loc, message + hint)
            return None

    def plugins(self, plugins: Plugins | None) -> dict[Loc, dict[str, Any]]:
        """Check everything that belongs to plugins; returns each section's options with every default."""
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
        for section in plugin_sections(self.data, RESERVED):
            options = self.options(section, plugins)
            if options is not None:
                resolved[section.loc] = options
        return resolved

    def options(self, section: PluginSection, plugins: Plugins) -> dict[str, Any] | None:
        """Validate one plugin section; returns its options with every default, or None if there are errors."""
        try:
            model = plugins.options_model(section.kind, section.name)
        except PluginError as error:
            short = isinstance(value_at(self.data, section.loc), str)
            self.add(section.loc if short else (*section.loc, "name"), str(error))
            return None
        try:
            return model.model_validate(section.options).model_dump(mode="json", by_alias=True)
        except ValidationError as error:
            errors = error.errors(include_url=False)
        recipe_keys = RESERVED[section.kind]
        for loc, message in rewrite(errors, model, section.options):
            if len(loc) == 1 and loc[0] in section.options and message.startswith("unknown key"):
                message = unknown_key(str(loc[0]), [*keys_of(model), *recipe_keys], section.loc)
            self.add((*section.loc, *loc), message)
        return None

    def unknown_dataset_keys(self, loc: Loc) -> None:
        """Record the unknown keys of a dataset section that is read from files or the hub."""
        known = RESERVED["datasets"]
        section = value_at(self.data, loc)
        for key in section if isinstance(section, Mapping) else ():
            if key not in known:
                self.add((*loc, key), unknown_key(str(key), known, loc))

    def finish(self) -> None:
        """Raise RecipeError with all problems in the order of their lines, if there are any."""
        if self.problems:
            last = len(self.source.lines) + len(self.source.text) + 1
            ordered = sorted(self.problems, key=lambda p: p.line if p.line is not None else last)
            raise RecipeError(self.source.label, ordered)


def _datasets_with_path(data: dict[str, Any]) -> list[Loc]:
    """Locations of dataset sections that are not registered datasets, so that their keys are all known."""
    locs: list[Loc] = []
    stages = data.get("stages")
    for index in range(len(stages) if isinstance(stages, list) else 0):
        for loc in (("stages", index, "dataset"), ("stages", index, "eval", "dataset")):
            section = value_at(data, loc)
            if isinstance(section, Mapping) and (
                section.get("path") is not None or section.get("name") is None
            ):
                locs.append(loc)
    return locs


def _add_rewards(data: dict[str, Any], rewards: Sequence[str]) -> None:
    """Add rewards to each RL stage that does not name them."""
    stages = data.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        if not isinstance(stage, dict) or stage.get("stage") != "rl":
            continue
        entries = stage.get("rewards") or []
        if isinstance(entries, list):
            named = [entry.get("name") for entry in entries if isinstance(entry, dict)]
            stage["rewards"] = [*entries, *({"name": name} for name in rewards if name not in named)]


def _with_defaults(data: dict[str, Any], resolved: Mapping[Loc, dict[str, Any]]) -> Recipe:
    """The recipe with the resolved options of plugins filled in."""
    filled = copy.deepcopy(data)
    for loc, options in resolved.items():
        section = value_at(filled, loc)
        if isinstance(section, dict):  # else a name alone, which stays one
            section.update(options)
    return Recipe.model_validate(filled)


__all__ = ["VERSION", "Plugins", "is_path", "load", "open_source"]
