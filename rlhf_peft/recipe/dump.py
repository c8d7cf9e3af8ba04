"""Writes a recipe as block-style YAML with every default, and its JSON Schema with the options of plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from .schema import Recipe

Options = Mapping[str, Mapping[str, type[BaseModel]]]
"""For each kind and registered name, the model of its options."""

_FIRST = ("version", "stage", "name", "path", "weight")


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; reading it gives an equal recipe."""
    return to_yaml(recipe.model_dump(mode="json"))


def to_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as block-style YAML, without anchors."""
    return yaml.dump(_order(data), Dumper=_Block, sort_keys=False, allow_unicode=True, width=2**20)


class _Block(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _order(value: Any) -> Any:
    """The data with the keys that identify a section first."""
    if isinstance(value, Mapping):
        first = [key for key in _FIRST if key in value]
        return {key: _order(value[key]) for key in [*first, *(k for k in value if k not in first)]}
    if isinstance(value, list):
        return [_order(item) for item in value]
    return value


def json_schema(options: Options | None = None) -> dict[str, Any]:
    """JSON Schema of a recipe; a plugin's section accepts each registered name with its own options.

    Args:
        options: the options of everything registered.
    """
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    if options:
        definitions = schema["$defs"]
        rl = definitions["RlStage"]["properties"]
        rl["algorithm"] = _one_of(definitions, "algorithms", options, "OpenSection")
        rl["sampler"] = _one_of(definitions, "samplers", options, "OpenSection")
        rewards = _one_of(definitions, "rewards", options, "RewardEntry")
        rl["rewards"]["items"] = rewards
        definitions["RlEval"]["properties"]["rewards"]["items"] = rewards
        _registered_datasets(definitions, options)
        _registered_quantizers(definitions, options)
    return schema


def _one_of(definitions: dict[str, Any], kind: str, options: Options, base: str) -> dict[str, Any]:
    names = []
    for name, model in sorted(options.get(kind, {}).items()):
        title = f"{kind}.{name}"
        definitions[title] = _section(definitions, name, model, definitions[base])
        names.append({"$ref": f"#/$defs/{title}"})
    return {"oneOf": names} if names else {"$ref": f"#/$defs/{base}"}


def _section(
    definitions: dict[str, Any], name: str, model: type[BaseModel], base: Mapping[str, Any]
) -> dict[str, Any]:
    """The schema of a plugin's section: the recipe's keys, then the plugin's."""
    plugin_schema = model.model_json_schema()
    definitions.update(plugin_schema.pop("$defs", {}))
    properties = {**base["properties"], "name": {"const": name}, **plugin_schema.get("properties", {})}
    return {
        "type": "object",
        "description": plugin_schema.get("description", ""),
        "properties": properties,
        "required": ["name", *plugin_schema.get("required", [])],
        "additionalProperties": False,
    }


def _registered_quantizers(definitions: dict[str, Any], options: Options) -> None:
    """Accept a quantizer's name alone if all its options have defaults, or a section."""
    known = options.get("quantizers", {})
    if known:
        base = definitions["Quantization"]["anyOf"][1]
        alone = [
            name for name, model in sorted(known.items()) if not model.model_json_schema().get("required")
        ]
        sections = [_section(definitions, name, model, base) for name, model in sorted(known.items())]
        definitions["Quantization"] = {"anyOf": [{"enum": alone}, *sections]}


def _registered_datasets(definitions: dict[str, Any], options: Options) -> None:
    files = definitions.pop("DatasetSource")
    sections = [{**files, "required": ["path"], "additionalProperties": False}]
    for name, model in sorted(options.get("datasets", {}).items()):
        sections.append(_section(definitions, name, model, files))
    definitions["DatasetSource"] = {"anyOf": sections}
