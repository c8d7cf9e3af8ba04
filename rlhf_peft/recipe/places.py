"""Places in a recipe: their dotted keys, and what the schema has there.

A place is a tuple of keys and list positions, `("stages", 0, "dataset", "path")`. People write and read
`stages.sft.dataset.path`: items of a list are called by their name, stages without one by their kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from .source import Loc

Model = type[BaseModel]


def label(item: Any) -> str | None:
    """What a list item is called: its name, else its stage kind."""
    if isinstance(item, Mapping):
        for key in ("name", "stage"):
            if isinstance(item.get(key), str) and item[key]:
                return str(item[key])
    return None


def dotted(data: Any, loc: Loc) -> str:
    """The key of a place as people write it."""
    text = ""
    for part in loc:
        name = str(part)
        if isinstance(part, int) and isinstance(data, list):
            names = [label(item) for item in data]
            own = names[part] if part < len(names) else None
            if own is None or names.count(own) > 1:
                text, data = f"{text}[{part}]", data[part] if part < len(data) else None
                continue
            name = own
        data = _inside(data, part)
        text = f"{text}.{name}" if text else name
    return text or "recipe"


def at(data: Any, loc: Loc) -> Any:
    """The value at a place, or None."""
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
    """The model that describes the mapping at a place, or None where the schema has none."""
    models = [model]
    for part in loc:
        if isinstance(part, str):
            section = _choose(models, data)
            found = section.model_fields.get(part) if section else None
            models = _models(found.annotation) if found else []
        data = _inside(data, part)
    return _choose(models, data)


def description(model: Model, data: Any, loc: Loc) -> str:
    """What the schema says about the key at a place, or nothing."""
    section = section_at(model, data, loc[:-1])
    found = section.model_fields.get(str(loc[-1])) if section else None
    return (found.description or "") if found else ""


def _models(annotation: Any) -> list[Model]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _choose(models: list[Model], data: Any) -> Model | None:
    """The one model, or the one whose literal fields (the stage's kind) are those of the data."""
    if len(models) <= 1 or not isinstance(data, Mapping):
        return models[0] if len(models) == 1 else None
    return next((model for model in models if _literals_fit(model, data)), None)


def _literals_fit(model: Model, data: Mapping[str, Any]) -> bool:
    required = {name: f.annotation for name, f in model.model_fields.items() if f.is_required()}
    literals = {name: get_args(a) for name, a in required.items() if get_origin(a) is Literal}
    return all(data.get(name) in values for name, values in literals.items())


@dataclass(frozen=True)
class OpenPlace:
    """A place where a plugin's options stand: its kind, the name given, the options given."""

    loc: Loc
    kind: str
    name: str
    options: dict[str, Any]


def open_places(data: Mapping[str, Any], reserved: Mapping[str, frozenset[str]]) -> Iterator[OpenPlace]:
    """Every place where something registered is named."""
    for loc, kind in _open_locs(data):
        section = at(data, loc)
        if kind == "quantizers" and isinstance(section, str):
            section = {"name": section}
        if not isinstance(section, Mapping):
            continue
        name = section.get("name")
        if isinstance(name, str) and not (kind == "datasets" and section.get("path") is not None):
            own = {key: value for key, value in section.items() if key not in reserved[kind]}
            yield OpenPlace(loc, kind, name, own)


def _open_locs(data: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
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
    items = at(data, loc)
    for index, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, Mapping):
            yield (*loc, index), item
