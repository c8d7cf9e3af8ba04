"""Reads YAML with `yaml.SafeLoader`, and records the line and the position of every key.

Besides invalid YAML, these are refused: duplicate keys, keys that are not text, tags, dates and other values that JSON
does not have, text that UTF-8 cannot represent, and files that are too large or too deep for a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..bounded_read import TooLarge, read_small
from ..errors import Problem, RecipeError, UsageError

Loc = tuple[str | int, ...]

MAX_BYTES = 1_000_000
MAX_NODES = 20_000
MAX_DEPTH = 60
_TAG = "tag:yaml.org,2002:"


@dataclass
class RecipeText:
    """A recipe as read, before its keys are checked.

    Attributes:
        label: name in error messages: the path or the shipped name.
        data: the mapping, with plain lists and values inside.
        lines: for the location of each key or list item, its line, counted from 1.
        spans: for the location of each plain value, its start and end in the text, in characters.
        text: content of the file.
        folder: folder that relative paths start from.
    """

    label: str
    data: dict[str, Any]
    lines: dict[Loc, int] = field(default_factory=dict)
    spans: dict[Loc, tuple[int, int]] = field(default_factory=dict)
    text: str = ""
    folder: Path | None = None


def read_text(path: Path) -> str:
    """The text of a recipe file; raises UsageError with the reason if it cannot be read."""
    try:
        if path.is_dir():
            raise UsageError(f"{path}: a folder, not a recipe. Name the YAML file inside it.")
        return read_small(path, MAX_BYTES).decode("utf-8-sig")
    except TooLarge as error:
        raise UsageError(f"{error}; a recipe is a text file of a few kilobytes.") from None
    except FileNotFoundError:
        raise UsageError(f"{path}: no such recipe file. Shipped recipes: rlhf-peft recipes list.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}. Save the recipe as UTF-8 text.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None


def parse(text: str, label: str, folder: Path | None = None) -> RecipeText:
    """Parse a recipe's mapping, with the lines of its keys.

    Raises:
        RecipeError: it is not YAML, not a mapping, has duplicate keys, or holds values that a recipe cannot hold.
    """
    builder = _build(text, label)
    if builder.problems:
        raise RecipeError(label, builder.problems)
    data = builder.data
    if data is None:
        raise RecipeError(
            label, [Problem("recipe", "the file is empty. Start from one: rlhf-peft recipes list")]
        )
    if not isinstance(data, dict):
        problem = Problem("recipe", f"expected keys such as `version: 1`, found {describe(data)}", 1)
        raise RecipeError(label, [problem])
    return RecipeText(label, data, builder.lines, builder.spans, text, folder)


def parse_value(text: str, key: str) -> Any:
    """Parse the value of a `K=V` override as YAML."""
    builder = _build(text, key, key)
    if builder.problems:
        raise RecipeError(key, builder.problems)
    return builder.data


def describe(value: Any) -> str:
    """A value as it is shown in an error message."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case dict():
            return "a mapping" if value else "an empty mapping"
        case list() | tuple() | set() | frozenset():
            return "a list" if value else "an empty list"
        case str():
            text = value if len(value) <= 60 else value[:57] + "..."
            return repr(text)
        case _:
            text = repr(value)
            return text if len(text) <= 60 else text[:57] + "..."


def _build(text: str, label: str, key: str | None = None) -> _Builder:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        builder = _Builder(loader, key)
        builder.data = None if node is None else builder.build(node, (), 0)
    except yaml.YAMLError as error:
        raise RecipeError(label, [_yaml_problem(error, key)]) from None
    except RecursionError:
        raise RecipeError(label, [Problem(key or "recipe", "nested too deeply")]) from None
    return builder


def _yaml_problem(error: yaml.YAMLError, key: str | None) -> Problem:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    context = getattr(error, "context", None)
    where = f"{context}, " if context else ""
    return Problem(
        key or "YAML", f"not valid YAML: {where}{reason}", None if key or mark is None else mark.line + 1
    )


class _Builder:
    """Turns YAML nodes into plain values; collects problems instead of stopping at the first."""

    def __init__(self, loader: yaml.SafeLoader, key: str | None) -> None:
        self.loader = loader
        self.key = key
        self.data: Any = None
        self.lines: dict[Loc, int] = {}
        self.spans: dict[Loc, tuple[int, int]] = {}
        self.problems: list[Problem] = []
        self.nodes = 0

    def build(self, node: yaml.Node, loc: Loc, depth: int) -> Any:
        """The plain value of a node; None if it is refused."""
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            if self.nodes <= MAX_NODES + 1:
                self.refuse(node, loc, "nested too deeply, or too large, to be a recipe")
                self.nodes = MAX_NODES + 1
            return None
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, loc, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            for index, item in enumerate(node.value):
                self.lines[(*loc, index)] = item.start_mark.line + 1
            return [self.build(item, (*loc, index), depth + 1) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, loc)
        return self.refuse(node, loc, f"the tag {node.tag} is not allowed in a recipe")

    def mapping(self, node: yaml.MappingNode, loc: Loc, depth: int) -> dict[str, Any]:
        """The keys and values of a mapping node."""
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _TAG + "merge":
                merged |= self.merge(value_node, loc, depth)
                continue
            if key_node.tag != _TAG + "str" or not isinstance(key_node, yaml.ScalarNode):
                text = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                self.refuse(key_node, loc, f"the key {text} is not text to YAML. Put it in quotes.")
                continue
            key = str(self.scalar(key_node, loc))
            if key in result:
                first = self.lines.get((*loc, key))
                self.refuse(key_node, (*loc, key), f"given twice, first on line {first}. Keep one.")
                continue
            self.lines[(*loc, key)] = line
            result[key] = self.build(value_node, (*loc, key), depth + 1)
        return {**merged, **result}

    def merge(self, node: yaml.Node, loc: Loc, depth: int) -> dict[str, Any]:
        """The keys of `<<`; earlier mappings of a list win, as in YAML."""
        value = self.build(node, loc, depth + 1)
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            self.refuse(node, loc, "`<<` takes a mapping or a list of mappings")
            return {}
        return {key: part[key] for part in reversed(parts) for key in part}

    def scalar(self, node: yaml.ScalarNode, loc: Loc) -> Any:
        """The value of a scalar node, and its position in `spans`."""
        try:
            value = self.loader.construct_object(node)
        except yaml.YAMLError:
            return self.refuse(node, loc, f"the tag {node.tag} is not allowed in a recipe")
        except Exception:  # PyYAML's constructors let ValueError, KeyError and others out of odd scalars
            return self.refuse(
                node, loc, f"{describe(node.value)} is not a valid {node.tag.removeprefix(_TAG)}"
            )
        if isinstance(value, str) and not _writable(value):
            return self.refuse(node, loc, "holds half of a surrogate pair, which is no character")
        if value is not None and not isinstance(value, (bool, int, float, str)):
            kind = type(value).__name__
            return self.refuse(node, loc, f"YAML reads {node.value} as a {kind}. Put it in quotes.")
        self.spans[loc] = (node.start_mark.index, node.end_mark.index)
        return value

    def refuse(self, node: yaml.Node, loc: Loc, message: str) -> None:
        """Record a problem."""
        line = None if self.key else node.start_mark.line + 1
        inner = ".".join(str(part) for part in loc)
        self.problems.append(Problem(".".join(p for p in (self.key, inner) if p) or "recipe", message, line))


def _writable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
