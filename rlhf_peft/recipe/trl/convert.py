"""Turns a configuration of TRL's trainers into a recipe, and lists the keys without an equivalent.

Every key is either read or named in the notes. A value that TRL would use by default and we would not is written out.
Sizes are those of one process.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import Problem, RecipeError, UsageError
from ..dump import to_yaml
from ..load import load
from ..messages import did_you_mean
from ..schema import RUN_NAME
from ..source import describe, parse, read_text
from .config import DEFAULTS, ONLINE, REASONS, RENAMED_KEYS, TRAINERS, TRAINERS_OF_KEY, TRAINERS_OF_LOSS
from .names import RECIPE_KEYS
from .online_dpo_ppo import online_dpo, ppo
from .rl import online
from .stages import lora, model, preference, reward, sft

_STAGES = {
    "sft": sft,
    "reward": reward,
    "dpo": preference,
    "kto": preference,
    "grpo": online,
    "rloo": online,
    "online_dpo": online_dpo,
    "ppo": ppo,
}


@dataclass
class Converted:
    """A recipe made from a TRL configuration.

    Attributes:
        text: the recipe as YAML; its opening comment holds the notes.
        data: the recipe as a mapping.
        notes: for each key that has no equivalent or changed its meaning, an explanation.
    """

    text: str
    data: dict[str, Any]
    notes: list[tuple[str, str]]


@dataclass
class Reader:
    """A configuration that records which keys were read, so that no key is ignored silently.

    Attributes:
        data: keys and values of the file.
        defaults: the trainer's defaults.
        used: keys that were read.
        notes: keys and explanations.
    """

    data: Mapping[str, Any]
    defaults: Mapping[str, Any]
    used: set[str] = field(default_factory=set)
    notes: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, key: str, default: Any = None) -> Any:
        """The value of a key, else TRL's default, else `default`."""
        self.used.add(key)
        value = self.data.get(key)
        return self.defaults.get(key, default) if value is None else value

    def number(self, key: str, default: float | None = None) -> Any:
        """The value of a number key; converts text such as `1e-6`, which YAML does not read as a number."""
        value = self(key, default)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise UsageError(f"{key}: expected a number, found {value!r}") from None
        if value is None or (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        ):
            return value
        raise UsageError(f"{key}: expected a number, found {describe(value)}")

    def count(self, key: str) -> int:
        """The value of a key for whole numbers above 0."""
        value = self.number(key)
        if value is None or value < 1 or value != int(value):
            raise UsageError(f"{key}: expected a whole number above 0, found {describe(value)}")
        return int(value)

    def list(self, key: str) -> Sequence[Any]:
        """The value of a key as a list; a single value becomes a list of one."""
        value = self(key)
        return value if isinstance(value, list) else [] if value is None else [value]

    def note(self, key: str, text: str) -> None:
        """Record an explanation for a key."""
        self.notes.append((key, text))

    def rest(self) -> None:
        """Record a note for each key that was not read and whose value is not empty."""
        for key, value in self.data.items():
            if key in self.used or value in (None, False, "no", "none", "", "None", [], {}):
                continue
            if key in REASONS:
                self.note(key, f"left out: {REASONS[key]}")
            elif key in RECIPE_KEYS:
                self.note(
                    key, f"left out: this trainer does not read it (here it would be {RECIPE_KEYS[key]})"
                )
            else:
                self.note(key, "left out: there is nothing like it here")


def convert(path: str | Path, trainer: str | None = None) -> Converted:
    """Make a recipe from a YAML or JSON configuration file of TRL.

    Args:
        path: the file, with flat keys as `trl grpo --config FILE` reads them.
        trainer: one of `TRAINERS`; None: guessed from the keys.

    Raises:
        UsageError: the file cannot be read, the trainer is unknown or cannot be guessed, or a value has no meaning
            in a recipe.
    """
    file_keys = _read(Path(path))
    renamed = {RENAMED_KEYS[key]: value for key, value in file_keys.items() if key in RENAMED_KEYS}
    data = {**renamed, **{key: value for key, value in file_keys.items() if key not in RENAMED_KEYS}}
    trainer = _trainer(data, trainer, str(path))
    reader = Reader(data, DEFAULTS[trainer])
    try:
        recipe = _recipe(reader, trainer)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    reader.rest()
    try:
        load(recipe)
    except RecipeError as error:
        raise RecipeError(str(path), error.problems) from None
    return Converted(_comment(Path(path), trainer, reader.notes) + to_yaml(recipe), recipe, reader.notes)


def _read(path: Path) -> dict[str, Any]:
    """The keys of a YAML or JSON file."""
    text = read_text(path)
    if path.suffix.lower() != ".json":
        return parse(text, str(path)).data
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(str(path), [Problem("JSON", f"not valid JSON: {error}")]) from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected an object with TRL's keys, found {type(data).__name__}")
    return data


def _trainer(data: Mapping[str, Any], requested: str | None, label: str) -> str:
    """The trainer that a file is for; it is guessed only if the keys leave no doubt."""
    if requested is not None:
        if requested not in TRAINERS:
            known = ", ".join(TRAINERS)
            raise UsageError(
                f"--trainer {requested}: unknown.{did_you_mean(requested, TRAINERS)} Known: {known}."
            )
        return requested
    candidates, deciding_keys = set(TRAINERS), []
    for key, value in data.items():
        owners = TRAINERS_OF_KEY.get(key)
        if key == "loss_type":
            first = value[0] if isinstance(value, list) and value else value
            owners = TRAINERS_OF_LOSS.get(first) if isinstance(first, str) else None
        if owners is not None and value is not None:
            candidates &= owners
            deciding_keys.append(key)
    words = _words(data, label)
    if candidates != {"online_dpo"} and not {"online", "dpo"} <= words:
        candidates.discard(
            "online_dpo"
        )  # shares its keys with the far more common DPO, and has keys of its own
    named = [trainer for trainer in sorted(candidates) if set(trainer.split("_")) <= words]
    if "online_dpo" in named:
        named = ["online_dpo"]
    if len(candidates) == 1 or len(named) == 1:
        return named[0] if len(named) == 1 else candidates.pop()
    if not candidates:
        why = f"{', '.join(sorted(deciding_keys))} do not belong to one trainer"
    elif not deciding_keys:
        why = "no key says which trainer it is for"
    else:
        why = f"{', '.join(sorted(deciding_keys))} could be for {' or '.join(sorted(candidates))}"
    raise UsageError(
        f"{label}: {why}. Name it: --trainer {'|'.join(t for t in TRAINERS if t in (candidates or TRAINERS))}"
    )


def _words(data: Mapping[str, Any], label: str) -> set[str]:
    """The words in the names of the file and the run."""
    names = [Path(label).stem, *(data.get(key) for key in ("run_name", "output_dir", "hub_model_id"))]
    return set(re.split(r"[^a-z0-9]+", " ".join(str(name) for name in names if name).lower()))


def _recipe(read: Reader, trainer: str) -> dict[str, Any]:
    recipe = {
        "version": 1,
        "name": _name(read, trainer),
        "seed": read("seed"),
        "output_dir": "runs",
        "model": model(read, trainer in ONLINE),
        "lora": lora(read),
        "stages": [_STAGES[trainer](read, trainer)],
    }
    if read("use_cpu"):
        recipe["device"] = "cpu"
    return recipe


def _name(read: Reader, trainer: str) -> str:
    """The run's name: TRL's run name, else the last part of its output folder."""
    run_name, folder = read("run_name"), read("output_dir")
    for name_or_path in (run_name, folder):
        last = str(name_or_path or "").replace("\\", "/").rstrip("/").rpartition("/")[2]
        name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in last).strip("._-")
        if RUN_NAME.fullmatch(name):
            if name_or_path is folder:
                read.note("output_dir", f"the run goes to runs/{name}/")
            return name
    return f"trl-{trainer}"


def _comment(path: Path, trainer: str, notes: list[tuple[str, str]]) -> str:
    lines = [f"# TRL's {trainer} configuration {path.name} as a recipe, for one process."]
    if notes:
        lines += ["#", "# What changed or has no equivalent:"]
        lines += [f"#   {key}: {' '.join(text.split())}" for key, text in notes]
    return "\n".join(lines) + "\n"
