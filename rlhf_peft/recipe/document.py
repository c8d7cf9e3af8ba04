"""Generates the Markdown page of every key of a recipe from the schema: the content of `recipes/README.md`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from . import shipped
from .dump import Options
from .messages import STAGES
from .schema import (
    Checkpoint,
    Collapse,
    DatasetSource,
    Lora,
    Model,
    OpenSection,
    Recipe,
    RewardEntry,
    RlEval,
    StageBase,
)

_INTRODUCTION = """\
# Recipes

A recipe is one YAML file that says everything about a run: the base model, the adapters, the stages in order,
the data, the rewards, the algorithm. The files in this folder ship with the package:

    rlhf-peft recipes list
    rlhf-peft recipes show quickstart
    rlhf-peft recipes copy quickstart my.yaml
    rlhf-peft validate my.yaml
    rlhf-peft run my.yaml seed=3 stages.rl.learning_rate=3e-6

- Paths in a recipe are relative to the recipe's folder; on the command line, to the current folder. `output_dir` is
  always relative to the current folder. An `init` that is not in the recipe's folder is also searched in the current
  folder.
- `K=V` on the command line overrides any value. Items of a list are called by their name, stages by their
  name or kind: `stages.rl.rewards.length.weight=0.2`.
- Unknown keys are refused, and all errors are reported at once, with line numbers.
- Numbers may be written `1e-6`.
- A recipe names registered things only; it cannot name code to import. Plugins that it needs stand under
  `plugins`, as requirements: `rlhf-peft-length-shaping>=0.1`.

- A configuration of TRL's trainers becomes a recipe: `rlhf-peft recipes from-trl grpo.yaml > my.yaml`. What has no
  equivalent is listed in its comment.
- `--sweep K=a,b` runs each value. Several `--sweep` run each combination (a cell), each in its own folder
  `<output_dir>/<name>-<cell>/`; the results are in `<output_dir>/<name>-sweep.json`. Stages that do not differ run
  once, finished cells are skipped, and a cell that fails does not stop the others. Sections are swept whole:

      rlhf-peft run quickstart --sweep seed=1,2,3
      rlhf-peft run quickstart --sweep 'stages.rl.algorithm=[{name: ppo, beta: 0.1}, {name: grpo}]'

This file is generated: `rlhf-peft --no-plugins schema --markdown > recipes/README.md`.
"""

_SECTIONS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("The recipe", "", Recipe),
    ("`model`", "", Model),
    (
        "`lora`",
        "Under the recipe for all roles; under a reward_model stage, the keys given there override them.",
        Lora,
    ),
    ("`dataset`", "Of a stage, and of its `eval`.", DatasetSource),
    ("`eval`", "Of a stage; `prompts` where the policy is trained, `rewards` in RL.", RlEval),
    ("`checkpoint`", "Of a stage; of an RL stage `every` is 10.", Checkpoint),
    ("`collapse`", "Of an RL stage.", Collapse),
    ("Every stage", "", StageBase),
)

_KINDS = {
    "algorithms": "algorithm",
    "samplers": "sampler",
    "rewards": "reward",
    "datasets": "registered dataset",
    "environments": "environment",
    "quantizers": "quantizer",
}


def document(options: Options | None = None) -> str:
    """A Markdown page with every key of a recipe: type, default, description.

    Args:
        options: for each kind and registered name, the options model; documented after the schema.
    """
    parts = [_INTRODUCTION, _shipped()]
    for title, about, model in _SECTIONS:
        parts.append(section(title, about, model, model.model_fields))
    for kind, model in STAGES.items():
        own_keys = [name for name, field in model.model_fields.items() if _is_own(name, field)]
        about = f"{_first_line(model)} Beside the keys of every stage:"
        parts.append(section(f"`stage: {kind}`", about, model, own_keys))
    parts.append(
        section(
            "An item of `rewards`",
            "Its own options stand beside these.",
            RewardEntry,
            RewardEntry.model_fields,
        )
    )
    for kind, word in _KINDS.items():
        for name, model in sorted((options or {}).get(kind, {}).items()):
            parts.append(
                section(f"{word.capitalize()} `{name}`", _first_line(model), model, model.model_fields)
            )
    return "\n".join(parts)


def _shipped() -> str:
    """A table with one line for each recipe of the package."""
    stems = sorted(path.stem for path in shipped.folder().glob("*.yaml"))
    rows = [f"| [`{name}`]({name}.yaml) | {_cell(shipped.summary(name))} |" for name in stems]
    return "\n".join(["## Shipped", "", "| recipe | what it does |", "|---|---|", *rows, ""])


def _is_own(name: str, field: Any) -> bool:
    """Whether a stage adds the key or has another default for it."""
    shared = StageBase.model_fields.get(name)
    return name != "stage" and (shared is None or shared.default != field.default)


def section(title: str, about: str, model: type[BaseModel], names: Iterable[str]) -> str:
    """A heading and a table of some keys of a section."""
    lines = [f"## {title}", ""]
    if about:
        lines += [about, ""]
    rows = [_row(model, name) for name in names]
    if not rows:
        return "\n".join([*lines, "No options.", ""])
    lines += ["| key | type | default | what it is |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    schema = model.model_json_schema()
    about = schema["properties"].get(field.alias or name, {})
    cells = [f"`{field.alias or name}`", _type(about), _default(field), field.description or ""]
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True) if field.default_factory is None else None
    if field.default_factory is not None:
        value = field.default_factory()
    if isinstance(value, OpenSection):
        return f"`{value.name}`"
    if isinstance(value, BaseModel):
        return "its own"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple, dict, set, frozenset)) and not value:
        return "none"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`" if value != "" else "see there"


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON Schema type in plain words."""
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(
            dict.fromkeys(_type(part) for part in schema.get("anyOf", schema.get("oneOf", ())))
        )
    if "$ref" in schema:
        return "section"
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_plural(_type(schema.get('items', {})))}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    word = words.get(str(kind), {"object": "mapping", "null": "null"}.get(str(kind), "anything"))
    return word + _bounds(schema)


def _plural(word: str) -> str:
    return word if word in ("text", "anything") or " or " in word else word + "s"


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [
        f"{sign} {plain_number(schema[key])}"
        for key, sign in signs.items()
        if key in schema and schema[key] < 2**53
    ]
    return f" {' and '.join(bounds)}" if bounds else ""


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n")[0]


def plain_number(value: float) -> str:
    """A number in the shortest text that gives it exactly: 100, 1,048,576, 1e+09."""
    if value == int(value) and abs(value) < 10**8:
        return f"{int(value):,}"
    return f"{value:g}"
