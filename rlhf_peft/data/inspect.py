"""A dataset, looked at before anything is trained on it: what it is, what is wrong with it, what it is good for."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from .advice import advice, checkable_column, mapping_hint
from .encode import Encoder
from .formats import Format, detect
from .load import load_rows
from .rows import BadRow, columns_of, numbered
from .trl_rows import trl_row


@dataclass(frozen=True, slots=True)
class Bad:
    """Rows that cannot be used for one reason.

    Attributes:
        count: of them.
        first: number of the first.
        reason: of the first, in full.
    """

    count: int
    first: int
    reason: str


@dataclass
class Inspection:
    """What was found.

    Attributes:
        source: path or hub id.
        rows: that could be read.
        columns: as the user knows them.
        format: of TRL's, or None where it is none.
        notes: what reading it said: encodings, separators, rows that could not be read.
        bad: kind to rows that can be read, and not used.
        duplicates: rows that are there before.
        lengths: part ("prompt", "chosen", ...) to its lengths, in `unit`.
        unit: tokens, or words where no model is given.
        too_long: rows that are over the context.
        limit: the context, in tokens; None: unknown.
        longer_chosen: share of pairs whose chosen answer is the longer one (equal ones count half); None: no pairs.
        advice: what suits, and the commands to paste.
        split: which part of it was read.
        name: of the configuration, on the hub.
    """

    source: str
    rows: int
    columns: list[str]
    format: Format | None
    notes: list[str] = field(default_factory=list)
    bad: dict[str, Bad] = field(default_factory=dict)
    duplicates: int = 0
    lengths: dict[str, list[int]] = field(default_factory=dict)
    unit: str = "words"
    too_long: int = 0
    limit: int | None = None
    longer_chosen: float | None = None
    advice: list[str] = field(default_factory=list)
    split: str = "train"
    name: str | None = None

    @property
    def place(self) -> dict[str, str]:
        """Where it is, as a recipe's dataset has it."""
        there = Path(self.source).exists()
        given = {"path": str(Path(self.source).absolute()) if there else self.source}
        if self.name is not None:
            given["name"] = self.name
        return given if self.split == "train" else {**given, "split": self.split}

    @property
    def usable(self) -> int:
        """Rows that a stage could train on."""
        return self.rows - sum(found.count for found in self.bad.values())

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "source": self.source,
            "rows": self.rows,
            "usable": self.usable,
            "columns": self.columns,
            "format": None if self.format is None else self.format.kind,
            "conversational": self.format is not None and self.format.conversational,
            "notes": self.notes,
            "bad": {
                kind: {"count": b.count, "first": b.first, "reason": b.reason} for kind, b in self.bad.items()
            },
            "duplicates": self.duplicates,
            "unit": self.unit,
            "lengths": {part: _summary(values) for part, values in self.lengths.items()},
            "too_long": self.too_long,
            "limit": self.limit,
            "longer_chosen": self.longer_chosen,
            "advice": self.advice,
        }


def _summary(values: list[int]) -> dict[str, float]:
    ordered = sorted(values)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    mean = sum(ordered) / len(ordered)
    return {"min": ordered[0], "median": at(0.5), "mean": mean, "95 %": at(0.95), "max": ordered[-1]}


def inspect(
    source: str,
    *,
    split: str = "train",
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    encoder: Encoder | None = None,
) -> Inspection:
    """Read a dataset and look at every row.

    Args:
        source: hub id, folder or file.
        split: which part of it.
        name: of a configuration on the hub.
        columns: renaming: our column to the file's.
        encoder: of the model that is to be trained: lengths are in its tokens, and its context is the limit.

    Raises:
        DataError: it cannot be read at all.
    """
    with _heard() as notes:
        rows = load_rows(path=source, name=name, split=split, columns=columns, on_bad_row="skip")
    if rows.info.description:
        notes.append(rows.info.description)
    found = Inspection(source, len(rows), columns_of(rows), detect(rows), notes, split=split, name=name)
    if found.format is None:
        found.advice = mapping_hint(found, checkable_column(rows))
        return found
    if encoder is not None:
        found.unit, found.limit = "tokens", encoder.max_length
    measure = _measure(encoder)
    seen: set[str] = set()
    longer: list[float] = []
    for number, row in numbered(rows):
        try:
            values = trl_row(row, found.format)
        except BadRow as problem:
            before = found.bad.get(problem.kind)
            found.bad[problem.kind] = (
                Bad(1, number, str(problem))
                if before is None
                else Bad(before.count + 1, before.first, before.reason)
            )
            continue
        digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
        found.duplicates += digest in seen
        seen.add(digest)
        parts = {name: measure(value) for name, value in values.items() if isinstance(value, str | list)}
        for name, length in parts.items():
            found.lengths.setdefault(name, []).append(length)
        found.too_long += _is_too_long(values, encoder)
        if "chosen" in parts:
            longer.append(
                0.5 if parts["chosen"] == parts["rejected"] else float(parts["chosen"] > parts["rejected"])
            )
    if longer:
        found.longer_chosen = sum(longer) / len(longer)
    found.advice = advice(found, checkable_column(rows), columns)
    return found


def _measure(encoder: Encoder | None) -> Callable[[Any], int]:
    def text_of(value: Any) -> str:
        return value if isinstance(value, str) else "\n".join(str(m.get("content") or "") for m in value)

    if encoder is None:
        return lambda value: len(text_of(value).split())
    return lambda value: len(encoder.tokenizer(text_of(value), add_special_tokens=False)["input_ids"])


def _is_too_long(values: Mapping[str, Any], encoder: Encoder | None) -> bool:
    from .trl_rows import check_fit

    if encoder is None:
        return False
    try:
        check_fit(values, encoder)
    except BadRow as problem:
        return problem.kind == "too long"
    return False


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What our log says inside, instead of on the screen."""
    said: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    log, handler = logging.getLogger("rlhf_peft"), Keeping()
    before, propagate = log.handlers[:], log.propagate
    log.handlers[:], log.propagate = [handler], False
    try:
        yield said
    finally:
        log.handlers[:], log.propagate = before, propagate


def model_encoder(location: str, max_length: int | None = None) -> Encoder:
    """The encoder of a model's tokenizer, without its weights.

    Args:
        location: hub id or folder.
        max_length: longest row; None: what the model allows.

    Raises:
        DataError: it has no tokenizer that can be read.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
        config = AutoConfig.from_pretrained(location, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise DataError(
                f"--model {location}: brings code of its own, which is not run here. Leave out --model, or name a "
                "model with the same tokenizer that brings none."
            ) from error
        first = str(error).strip().splitlines()[0]
        raise DataError(f"--model {location}: its tokenizer cannot be read ({first}).") from error
    return Encoder(tokenizer, max_length=max_length or getattr(config, "max_position_embeddings", None))
