"""Detects which of TRL's dataset formats rows are in, and whether a stage can use it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import DataError
from .columns import as_yaml, suggest, whole_prompt
from .conversation import is_messages
from .json_text import is_conversation_json
from .rows import as_text, columns_of, override

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("rlhf_peft")

Kind = Literal["language_modeling", "prompt_only", "prompt_completion", "preference", "unpaired_preference"]
Method = Literal["sft", "dpo", "kto", "reward_model", "rl"]

# The format is the first one whose columns are all present.
SHAPES: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("preference", ("prompt", "chosen", "rejected")),
    ("preference", ("chosen", "rejected")),
    ("unpaired_preference", ("prompt", "completion", "label")),
    ("prompt_completion", ("prompt", "completion")),
    ("language_modeling", ("messages",)),
    ("language_modeling", ("conversations",)),
    ("language_modeling", ("text",)),
    ("prompt_only", ("prompt",)),
)

# The formats that each method reads; an error message proposes the first one first.
ACCEPTS: dict[Method, tuple[tuple[Kind, tuple[str, ...]], ...]] = {
    "sft": (
        ("prompt_completion", ("prompt", "completion")),
        ("language_modeling", ("messages",)),
        ("language_modeling", ("conversations",)),
        ("language_modeling", ("text",)),
    ),
    "dpo": (("preference", ("prompt", "chosen", "rejected")), ("preference", ("chosen", "rejected"))),
    "reward_model": (
        ("preference", ("prompt", "chosen", "rejected")),
        ("preference", ("chosen", "rejected")),
    ),
    "kto": (
        ("unpaired_preference", ("prompt", "completion", "label")),
        ("preference", ("prompt", "chosen", "rejected")),
        ("preference", ("chosen", "rejected")),
    ),
    "rl": (("prompt_only", ("prompt",)), ("preference", ("chosen", "rejected"))),
}

STAGE_NAMES: dict[Method, str] = {
    "sft": "An sft stage",
    "dpo": "A preference stage",
    "kto": "A preference stage with method kto",
    "reward_model": "A reward_model stage",
    "rl": "An rl stage",
}


@dataclass(frozen=True, slots=True)
class Format:
    """A dataset format of TRL's.

    Attributes:
        kind: name of the format.
        columns: the columns that make it.
        conversational: whether the texts are messages rather than plain text.
    """

    kind: Kind
    columns: tuple[str, ...]
    conversational: bool

    @property
    def implicit_prompt(self) -> bool:
        """Whether the prompt is the beginning that `chosen` and `rejected` share."""
        return self.columns == ("chosen", "rejected")


def detect(dataset: Dataset) -> Format | None:
    """The format of a dataset, by its columns and its first row; None if it is none of TRL's."""
    names = set(columns_of(dataset))
    for kind, columns in SHAPES:
        if names.issuperset(columns):
            return Format(kind, columns, conversational(dataset, columns))
    return None


def conversational(dataset: Dataset, columns: tuple[str, ...]) -> bool:
    """Whether the first row that holds anything in these columns holds messages in one of them."""
    for row in dataset.select_columns(list(columns)):
        if any(row[name] for name in columns if name != "label"):
            values = (row[name] for name in columns)
            return columns == ("conversations",) or any(
                is_messages(v) or is_conversation_json(v) for v in values
            )
    return False


def require(
    dataset: Dataset, method: Method, source: str, *, stage: str | None = None, warn: bool = True
) -> Format:
    """The format in which a method reads a dataset.

    Args:
        dataset: the rows.
        method: training method that will use them.
        source: name of the dataset in messages.
        stage: name of the stage in the recipe, for the override that the message prints.
        warn: whether to warn of columns that the method does not read.

    Raises:
        DataError: the columns fit none of the method's formats; the message names them and says how to map them.
    """
    names = set(columns_of(dataset))
    for kind, columns in ACCEPTS[method]:
        if names.issuperset(columns):
            if warn:
                warn_of_unread(names, kind, method, source)
            return Format(kind, columns, conversational(dataset, columns))
    raise DataError(format_error(dataset, method, source, stage))


UNREAD_TEXT_COLUMNS = (
    *("system_prompt", "instruction", "input", "context", "history", "documents", "reasoning", "thinking"),
    *("image", "images", "video", "videos", "audio", "audios", "chat_template_kwargs"),
)
"""Columns that look like training text, but that no stage reads."""


def warn_of_unread(names: set[str], kind: Kind, method: Method, source: str) -> None:
    """Warn of columns that look as if they were trained on, but are not read."""
    unread = [name for name in UNREAD_TEXT_COLUMNS if name in names]
    if unread:
        log.warning(
            "%s: not trained on, in any stage: the columns %s. Texts may be joined to a column that is, as in "
            "dataset.columns={prompt: [context, prompt]}",
            source,
            ", ".join(unread),
        )
    if kind != "preference" or method == "rl":
        return
    if "label" in names:
        log.warning(
            "%s: the column label is not read beside chosen and rejected, in any stage; the probability that the "
            "chosen answer is the better one is read from a column chosen_prob",
            source,
        )
    for name, what in (("chosen_prob", "weighs pairs by chosen_prob"), ("margin", "reads margins")):
        if name in names and method != "reward_model":
            log.warning(
                "%s: only a reward_model stage %s; here every chosen answer counts as the better one",
                source,
                what,
            )


def mappable(method: Method) -> list[tuple[str, ...]]:
    """The sets of columns that a file's columns can be mapped to."""
    return [columns for _, columns in ACCEPTS[method] if columns != ("conversations",)]


def format_error(dataset: Dataset, method: Method, source: str, stage: str | None) -> str:
    """Message: the dataset, the columns that were found, those that were expected, and the override to type."""
    names = columns_of(dataset)
    shapes = mappable(method)
    note = dataset.info.description or ""
    note = f" ({note})" if note.startswith("separator ") else ""
    expected = ", or ".join("+".join(columns) for columns in shapes)
    guess, exact = suggest(names, shapes)
    pairs = as_yaml(whole_prompt(guess, names))
    lead = "Map them" if exact else "Map them, with your own column names"
    stage = stage or {"dpo": "preference", "kto": "preference"}.get(method, method)
    return (
        f"{source}: found columns {as_text(names)}{note}. {STAGE_NAMES[method]} needs {expected}. "
        f"{lead}:  {override(stage, 'columns=')}'{pairs}'"
    )
