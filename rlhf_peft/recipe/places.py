"""Locations in a recipe: their dotted keys, and the schema at a location.

A location is a tuple of keys and list indices, `("stages", 0, "dataset", "path")`. Users write and read
`stages.sft.dataset.path`: list items are named by their `name`, stages without one by their kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from .source import Loc

Model = type[BaseModel]


def label(item: Any) -> str | None:
    """The name of a list item: its `name`, else its stage kind."""
    if isinstance(item, Mapping):
        for key in ("name", "stage"):
            if isinstance(item.get(key), str) and item[key]:
                return str(item[key])
    return None


def dotted(data: Any, loc: Loc) -> str:
    """The key of a location as users write it."""
    text = ""
    for part in loc:
        name = str(part)
        if isinstance(part, int) and isinstance(data, list):
            names = [label(item) for item in data]
            item_name = names[part] if part < len(names) else None
            if item_name is None or names.count(item_name) > 1:
                text, data = f"{text}[{part}]", data[part] if part < len(data) else None
                continue
            name = item_name
        data = _inside(data, part)
        text = f"{text}.{name}" if text else name
    return text or "recipe"


def value_at(data: Any, loc: Loc) -> Any:
    """The value at a location, or None."""
    for part in loc:
        data = _inside(data, part)
    return data


def _inside(data: Any, part: str | int) -> Any:
    if isinstance(data, Mapping):
        return data.get(part)
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    return None


def section_at(model: Model, data: Any, loc: Loc) -> Model | None:
    """The model that describes the mapping at a location, or None if the schema has none."""
    models = [model]
    for part in loc:
        if isinstance(part, str):
            section = _choose(models, data)
            field = section.model_fields.get(part) if section else None
            models = _models(field.annotation) if field else []
        data = _inside(data, part)
    return _choose(models, data)


def description(model: Model, data: Any, loc: Loc) -> str:
    """The schema's description of the key at a location, or an empty text."""
    section = section_at(model, data, loc[:-1])
    field = section.model_fields.get(str(loc[-1])) if section else None
    return (field.description or "") if field else ""


def _models(annotation: Any) -> list[Model]:
    """All models that occur in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _choose(models: list[Model], data: Any) -> Model | None:
    """The only model, or the one whose literal fields (such as the stage's kind) match the data."""
    if len(models) <= 1 or not isinstance(data, Mapping):
        return models[0] if len(models) == 1 else None
    return next((model for model in models if _literals_fit(model, data)), None)


def _literals_fit(model: Model, data: Mapping[str, Any]) -> bool:
    required = {name: f.annotation for name, f in model.model_fields.items() if f.is_required()}
    literals = {name: get_args(a) for name, a in required.items() if get_origin(a) is Literal}
    return all(data.get(name) in values for name, values in literals.items())


@dataclass(frozen=True)
class PluginSection:
    """A section with a plugin's options: its location, kind, registered name and options."""

    loc: Loc
    kind: str
    name: str
    options: dict[str, Any]


def plugin_sections(
    data: Mapping[str, Any], reserved: Mapping[str, frozenset[str]]
) -> Iterator[PluginSection]:
    """Yield every section that names something registered."""
    for loc, kind in _plugin_section_locs(data):
        section = value_at(data, loc)
        if kind == "quantizers" and isinstance(section, str):
            section = {"name": section}
        if not isinstance(section, Mapping):
            continue
        name = section.get("name")
        if isinstance(name, str) and not (kind == "datasets" and section.get("path") is not None):
            options = {key: value for key, value in section.items() if key not in reserved[kind]}
            yield PluginSection(loc, kind, name, options)


def _plugin_section_locs(data: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """Locations of all sections that may name something registered, with the kind."""
    yield ("model", "quantization"), "quantizers"
    for loc, stage in _items(data, ("stages",)):
        yield (*loc, "dataset"), "datasets"
        yield (*loc, "eval", "dataset"), "datasets"
        for inner, _ in _items(data, (*loc, "eval", "rewards")):
            yield inner, "rewards"
        if stage.get("stage") == "rl":
            yield (*loc, "algorithm"), "algorithms"
            yield (*loc, "sampler"), "samplers"
            for inner, _ in _items(data, (*loc, "rewards")):
                yield inner, "rewards"


def _items(data: Any, loc: Loc) -> Iterator[tuple[Loc, Mapping[str, Any]]]:
    """The mappings in a list at a location, with their own locations."""
    items = value_at(data, loc)
    for index, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, Mapping):
            yield (*loc, index), item
