"""Turns pydantic's errors into messages for users: what was found, what was expected, what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from .places import description, section_at, value_at
from .schema import Lora, PreferenceStage, Recipe, RewardModelStage, RlStage, SftStage
from .schema import Model as BaseModelSection
from .source import Loc, describe
from .trl.names import RECIPE_KEYS

STAGES: dict[str, type[BaseModel]] = {
    "sft": SftStage,
    "reward_model": RewardModelStage,
    "preference": PreferenceStage,
    "rl": RlStage,
}

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_unicode": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "keys with values",
    "mapping_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("of at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("of at most", "le"),
}


def rewrite(errors: Iterable[Mapping[str, Any]], model: type[BaseModel], data: Any) -> list[tuple[Loc, str]]:
    """Pydantic's errors as locations and messages; what several branches of a union expect becomes one message.

    Args:
        errors: `ValidationError.errors()`.
        model: the model that the data was validated against.
        data: the plain data.
    """
    expected: dict[Loc, tuple[list[str], Any]] = {}
    messages_at: dict[Loc, list[str]] = {}
    for error in errors:
        loc = _place(error, data)
        if error["type"] == "dataset_extra":
            continue
        expectation = _expectation(error)
        if expectation is not None:
            alternatives, _ = expected.setdefault(loc, ([], error["input"]))
            if expectation not in alternatives:
                alternatives.append(expectation)
        else:
            message = _message(error, model, data, loc)
            if message not in messages_at.setdefault(loc, []):
                messages_at[loc].append(message)
    for loc, (expectations, value) in expected.items():
        messages_at.setdefault(loc, []).append(
            f"expected {' or '.join(expectations)}, found {describe(value)}"
        )
    return [(loc, message) for loc, messages in messages_at.items() for message in messages]


def unknown_key(key: str, known: Iterable[str], section: Loc) -> str:
    """Message for a key that a section does not have.

    Args:
        key: the key as written.
        known: the section's keys.
        section: the section's location.
    """
    known = sorted(set(known))
    pattern = _pattern(section)
    recipe_key = RECIPE_KEYS.get(key)
    if recipe_key is not None:
        parent, _, leaf = recipe_key.rpartition(".")
        if parent == pattern and leaf in known:
            return f"unknown key. TRL's name; here: {leaf}."
        if parent != pattern:
            return f"unknown key. TRL's name; here: {_relative(recipe_key, pattern)}."
    if (reason := _not_here(key, known)) is not None:
        return f"unknown key here: {reason}"
    elsewhere = _sections_with(key)
    if elsewhere and pattern not in elsewhere:
        return f"unknown key here. It belongs to {_relative(elsewhere[0], pattern) or 'the top level'}."
    close = did_you_mean(key, known)
    return f"unknown key.{close}" if close else f"unknown key. Known: {', '.join(known) or 'none'}."


def _not_here(key: str, known: Iterable[str]) -> str | None:
    """Explain why a stage lacks a key that other stages have, and what to write instead; None for other keys."""
    if key == "batch_size" and "prompts_per_step" in known:
        return (
            "an rl stage samples its rows. Set prompts_per_step, and num_generations and num_minibatches of its "
            "algorithm."
        )
    if key == "lora" and "max_bad_steps" in known:
        return (
            "all stages train the same policy adapter. Set lora at the top level; only a reward_model stage has its "
            "own."
        )
    return None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean x?`, or an empty text."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(names), n=1, cutoff=0.6)
    return f" Did you mean {names[close[0]]}?" if close else ""


def stage_kind(value: Any, missing: bool) -> str:
    """Message for a `stage:` that is missing or unknown."""
    kinds = ", ".join(sorted(STAGES))
    if missing:
        return f"the stage has no kind. Write `stage:` with one of {kinds}."
    if isinstance(value, str):
        if value.lower() in ("dpo", "kto"):
            return f"{value} is a method. Write `stage: preference` and `method: {value.lower()}`."
        close = did_you_mean(value, STAGES)
        algorithm = (
            f" An RL algorithm is written as `stage: rl` and `algorithm:` with `name: {value.lower()}`."
        )
        return f"unknown kind {describe(value)}.{close or f' Known: {kinds}.{algorithm}'}"
    return f"expected one of {kinds}, found {describe(value)}"


def _place(error: Mapping[str, Any], data: Any) -> Loc:
    """Pydantic's location without the names of union branches and validators."""
    loc: list[str | int] = []
    parts = error["loc"]
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if isinstance(data, Mapping) and (part in data or (last and error["type"] == "missing")):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        loc.append(part)
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        loc.append("stage")
    return tuple(loc)


def _expectation(error: Mapping[str, Any]) -> str | None:
    """Description of the expected value, if the error contains one."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        limit = context[bound]
        return f"a number {words} {f'{limit:g}' if isinstance(limit, float) else limit}"
    if kind in ("too_short", "too_long"):
        count = context.get("min_length", context.get("max_length"))
        return f"at {'least' if kind == 'too_short' else 'most'} {count} item{'s' if count != 1 else ''}"
    if kind == "literal_error":
        return f"one of {context['expected']}".replace("'", "")
    if error["msg"].startswith("Input should be "):
        return str(error["msg"]).removeprefix("Input should be ")
    return None


def _message(error: Mapping[str, Any], model: type[BaseModel], data: Any, loc: Loc) -> str:
    kind = error["type"]
    if kind == "missing":
        about = description(model, data, loc)
        return f"required, but missing.{' ' + about if about else ''}"
    if kind == "extra_forbidden":
        section = section_at(model, data, loc[:-1])
        return unknown_key(str(loc[-1]), keys_of(section) if section else (), loc[:-1])
    if kind == "union_tag_not_found":
        return stage_kind(None, missing=True)
    if kind == "union_tag_invalid":
        return stage_kind(value_at(data, loc), missing=False)
    return str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys of a section, as they are written in a recipe."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _pattern(section: Loc) -> str:
    """The section's location in the form of `trl.names`: `stages.*.sampler`."""
    return ".".join("*" if isinstance(part, int) else part for part in section)


def _relative(recipe_key: str, pattern: str) -> str:
    """A recipe key as seen from a section; the common beginning is left out."""
    stage = "stages.*"
    if pattern.startswith(stage) and recipe_key.startswith(stage):
        recipe_key = recipe_key.removeprefix(stage + ".")
    return recipe_key.replace("*", "<stage>")


def _sections_with(key: str) -> list[str]:
    """Patterns of the sections that have a key of exactly this name."""
    sections: dict[str, type[BaseModel]] = {"": Recipe, "model": BaseModelSection, "lora": Lora}
    patterns = [pattern for pattern, model in sections.items() if key in model.model_fields]
    common = set.intersection(*(set(model.model_fields) for model in STAGES.values()))
    if key in common - {"name"}:
        patterns.append("stages.*")
    elif key not in Recipe.model_fields:
        kinds = [kind for kind, model in STAGES.items() if key in model.model_fields]
        patterns += [f"a stage of kind {kind}" for kind in kinds]
    return patterns
