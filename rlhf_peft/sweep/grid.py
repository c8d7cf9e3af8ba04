"""The cells of a sweep: their values, names and recipes, and which stages they share.

A sweep is a grid: it combines every value of every key with every value of the others.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ..errors import RecipeError, UsageError
from ..recipe import Recipe, load
from ..recipe.load import Plugins
from ..recipe.source import parse_value

RESERVED = ("name", "output_dir", "version", "plugins")
MOST_CELLS = 1000
LONGEST_NAME = 100


@dataclass(frozen=True)
class Axis:
    """One swept key with its values.

    Attributes:
        key: dotted, as on the command line.
        values: plain YAML values, in order.
    """

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Attributes:
        values: swept key to value.
        recipe: complete and checked; its name is that of the cell's run folder.
    """

    values: dict[str, Any]
    recipe: Recipe

    @property
    def name(self) -> str:
        """The name of the cell's run folder."""
        return self.recipe.name


def parse_axis(text: str) -> Axis:
    """Parse `K=a,b,c`, or `K=[...]` in YAML, which lists, mappings and values with commas need.

    Raises:
        UsageError: it has another form, a value occurs twice, or the key cannot be swept.
    """
    key, equals, values_text = text.partition("=")
    key, values_text = key.strip(), values_text.strip()
    if not equals or not key or not values_text:
        raise UsageError(f"--sweep {text}: expected K=a,b, such as seed=1,2,3 or lora.r=8,16")
    if key in RESERVED:
        raise UsageError(f"--sweep {key}: every cell has its own folder already; sweep another key.")
    if values_text.startswith("{"):
        raise UsageError(f"--sweep {key}: put mappings into a list: '{key}=[{{name: ppo}}, {{name: grpo}}]'")
    values = parse_value(values_text if values_text.startswith("[") else f"[{values_text}]", key)
    texts = [json.dumps(value, sort_keys=True) for value in values]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if not values or twice is not None:
        raise UsageError(f"--sweep {key}: {'no value' if not values else f'{twice} is there twice'}.")
    return Axis(key, tuple(values))


def make_cells(
    source: Any,
    overrides: Sequence[str],
    axes: Sequence[Axis],
    *,
    plugins: Plugins,
    rewards: Sequence[str] = (),
) -> list[Cell]:
    """Make every cell with its checked recipe.

    Raises:
        UsageError: a key is swept twice, or cells are wrong; the message lists all of them and their problems.
    """
    keys = [axis.key for axis in axes]
    if len(set(keys)) < len(keys):
        raise UsageError(f"--sweep {next(k for k in keys if keys.count(k) > 1)}: swept twice. Give one list.")
    grid = [dict(zip(keys, point, strict=True)) for point in itertools.product(*(a.values for a in axes))]
    if len(grid) > MOST_CELLS:
        raise UsageError(f"--sweep: {len(grid):,} cells are more than {MOST_CELLS:,}. Sweep fewer values.")
    cells, wrong = [], []
    for values, label in zip(grid, labels(grid), strict=True):
        swept = [f"{key}={_flow(value)}" for key, value in values.items()]
        try:
            recipe = load(source, [*overrides, *swept], plugins=plugins, rewards=rewards)
        except RecipeError as error:
            wrong.append((label, error))
            continue
        cells.append(Cell(values, recipe.model_copy(update={"name": f"{recipe.name}-{label}"})))
    if wrong:
        raise UsageError(_error_text(wrong, len(grid), keys))
    return cells


def _flow(value: Any) -> str:
    """A value as one line of YAML, as an override is written."""
    line = yaml.safe_dump([value], default_flow_style=True, width=2**20, allow_unicode=True)
    return line.strip()[1:-1]


def _error_text(wrong: Sequence[tuple[str, RecipeError]], count: int, keys: Iterable[str]) -> str:
    lines = [f"--sweep: {len(wrong)} of {count} cells are wrong, nothing was run."]
    for label, error in wrong:
        lines += [f"  {label}:", *(f"    {problem}" for problem in error.problems)]
    section = next((key.removesuffix(".name") for key in keys if key.endswith("algorithm.name")), None)
    if section and any("unknown key" in str(error) for _, error in wrong):
        lines.append(
            "  The recipe's options stay when only a name is swept. Sweep the section whole:\n"
            f"    --sweep '{section}=[{{name: ppo, beta: 0.1}}, {{name: grpo}}]'"
        )
    return "\n".join(lines)


def labels(grid: Sequence[Mapping[str, Any]]) -> list[str]:
    """A readable name for each point of the grid, safe as a part of a folder's name, such as `seed1-ppo`.

    Args:
        grid: for each point, swept key to value.
    """
    short = _short_keys(list(grid[0])) if grid else {}
    names: list[str] = []
    for point in grid:
        label = "-".join(_label(short[key], value) for key, value in point.items())
        if len(label) > LONGEST_NAME:
            label = f"{label[:LONGEST_NAME]}-{_hash(point)}"
        names.append(label)
    lower = [label.lower() for label in names]
    return [
        f"{label}-{_hash(point)}" if lower.count(label.lower()) > 1 else label
        for label, point in zip(names, grid, strict=True)
    ]


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """For each key, the shortest ending of it that is unique among the keys."""
    short = {}
    for key in keys:
        parts = key.split(".")
        tails = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        clear = (t for t in tails if not any(k != key and (k == t or k.endswith("." + t)) for k in keys))
        short[key] = next(clear, key)
    return short


def _label(key: str, value: Any) -> str:
    if isinstance(value, dict):
        rest = {name: inner for name, inner in value.items() if name != "name"}
        words = [*([str(value["name"])] if "name" in value else []), *(_label(k, v) for k, v in rest.items())]
        return _safe("-".join(words)) or _safe(key)
    words = value if isinstance(value, list) else [value]
    text = "+".join(word if isinstance(word, str) else json.dumps(word) for word in words)
    alone = isinstance(value, str) and not _is_number(value)
    return _safe(text if alone and text.strip() else f"{key}{text}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "x"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def prefix(recipe: Recipe, stages: int) -> str:
    """A hash of all that the first `stages` stages of a recipe depend on: equal hashes give equal results."""
    data = recipe.model_dump(mode="json", exclude={"name", "output_dir", "stages"})
    return _hash([data, [stage.model_dump(mode="json") for stage in recipe.stages[:stages]]])


def shared_stages(recipes: Sequence[Recipe]) -> dict[str, int]:
    """For each prefix hash, how many recipes begin with these stages; a prefix never has all stages of a recipe."""
    counts: dict[str, int] = {}
    for recipe in recipes:
        for stages in range(1, len(recipe.stages)):
            key = prefix(recipe, stages)
            counts[key] = counts.get(key, 0) + 1
    return counts


def beginning(recipe: Recipe, counts: Mapping[str, int], sharers: int = 1) -> Recipe | None:
    """The longest beginning of a recipe that more than `sharers` recipes share, as a recipe; None: there is none."""
    for stages in range(len(recipe.stages) - 1, 0, -1):
        key = prefix(recipe, stages)
        if counts.get(key, 0) > sharers:
            return recipe.model_copy(update={"stages": recipe.stages[:stages]})
    return None
