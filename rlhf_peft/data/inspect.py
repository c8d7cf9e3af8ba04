"""A dataset, looked at before anything is trained on it: what it is, what is wrong with it, what it is good for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engine.ends import end_ids
from ..errors import DataError
from . import cache
from .advice import advice, checkable_column, mapping_hint
from .batches import Outcome, in_batches
from .encode import Encoder
from .examples import example, notes_of
from .formats import Format, detect
from .load import Columns, load_rows
from .progress import shown
from .rows import BATCH, BadRow, BadRows, columns_of, numbered
from .tokens import Steps


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
        duplicates: rows that repeat earlier ones.
        lengths: part ("prompt", "chosen", ...) to its lengths, in `unit`.
        unit: tokens, or words where no model is given.
        too_long: rows that are over the context.
        limit: the context, in tokens; None: unknown.
        longer_chosen: share of pairs whose chosen answer is the longer one (equal ones count half); None: no pairs.
        advice: what suits, and the commands to paste.
        split: which part of it was read.
        name: of the configuration, on the hub.
        model: that is to be trained; None: not said.
        unread: columns that no stage but RL reads, whose rewards are given them.
        example: number and parts of the first usable row, as they are trained on.
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
    model: str | None = None
    unread: list[str] = field(default_factory=list)
    example: dict[str, Any] = field(default_factory=dict)

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
            "unread": self.unread,
            "example": self.example,
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
    columns: Columns | None = None,
    encoder: Encoder | None = None,
    model: str | None = None,
) -> Inspection:
    """Read a dataset and look at every row.

    Args:
        source: hub id, folder or file.
        split: which part of it.
        name: of a configuration on the hub.
        columns: renaming: our column to the file's.
        model: that is to be trained, for the commands to paste.
        encoder: of that model: lengths are in its tokens, and its context is the limit.

    Raises:
        DataError: it cannot be read at all.
    """
    with heard() as notes:
        rows = load_rows(path=source, name=name, split=split, columns=columns, on_bad_row="skip")
    if rows.info.description:
        notes.append(rows.info.description)
    found = Inspection(
        source, len(rows), columns_of(rows), detect(rows), notes, split=split, name=name, model=model
    )
    if found.format is None:
        found.advice = mapping_hint(found, checkable_column(rows))
        return found
    found.unread = [name for name in found.columns if name not in (*found.format.columns, *ALSO_READ)]
    if encoder is not None:
        found.unit, found.limit = "tokens", encoder.max_length
        encoder = encoder.without_limit()
    said = BadRows(source, "skip")
    _look_at(rows, found, found.format, encoder, said)
    for number, bad in said.found:
        before = found.bad.get(bad.kind, Bad(0, number, str(bad)))
        found.bad[bad.kind] = dataclasses.replace(before, count=before.count + 1)
    found.notes += [
        f"{note.count:,} rows {text} (first: row {note.first:,})" for text, note in said.notes.items()
    ]
    found.advice = advice(found, checkable_column(rows), columns)
    return found


def _look_at(rows: Any, found: Inspection, format: Format, encoder: Encoder | None, said: BadRows) -> None:
    """Count the rows that can be used, and note the others."""
    seen: set[bytes] = set()
    outcomes = _measured(rows, format, encoder)
    for place, outcome in enumerate(shown(outcomes, f"{found.source}: looking at rows", len(rows))):
        if place % BATCH == 0:
            cache.release()
        if outcome.bad is not None:
            said.add(outcome.number, outcome.bad)
            continue
        assert outcome.value is not None
        values, parts = outcome.value
        said.note(outcome.number, [*notes_of(outcome.row), *sorted(outcome.notes)])
        digest = hashlib.blake2b(CANONICAL.encode(values).encode(), digest_size=16).digest()
        found.duplicates += digest in seen
        seen.add(digest)
        if not found.example:
            found.example = {"row": outcome.number, **_shown(values, parts, encoder)}
        _count(found, {name: len(part) for name, part in parts.items()})
    cache.release()


def _measured(rows: Any, format: Format, encoder: Encoder | None) -> Iterator[Outcome[Any]]:
    """Each row as an example, and its parts: their tokens, or their words where no model is given."""
    if encoder is not None:
        model = encoder

        def steps(row: Mapping[str, Any]) -> Steps[Any]:
            values = example(row, format)
            return values, (yield from _tokens(values, model))

        yield from in_batches(numbered(rows), steps, model)
        return
    for number, row in numbered(rows):
        try:
            values = example(row, format)
        except BadRow as bad:
            yield Outcome(number, row, bad=bad)
        else:
            words = {name: _text_of(values[name]).split() for name in _parts(values)}
            yield Outcome(number, row, (values, words))


CANONICAL = json.JSONEncoder(sort_keys=True, default=str)
"""Writes equal examples alike."""
ALSO_READ = ("tools", "functions", "system", "chosen_prob", "margin")
"""Columns that stages read beside those of a format."""


def _count(found: Inspection, lengths: Mapping[str, int]) -> None:
    """Add the lengths of a row's parts."""
    for name, length in lengths.items():
        found.lengths.setdefault(name, []).append(length)
    found.too_long += found.limit is not None and sum_of_longest(lengths) > found.limit
    if "chosen" in lengths:
        longer = lengths["chosen"] - lengths["rejected"]
        pairs, before = len(found.lengths["chosen"]), found.longer_chosen or 0.0
        found.longer_chosen = before + ((0.5 if longer == 0 else float(longer > 0)) - before) / pairs


def sum_of_longest(lengths: Mapping[str, int]) -> int:
    """Tokens of a prompt and its longest answer."""
    answers = [length for name, length in lengths.items() if name != "prompt"]
    return lengths.get("prompt", 0) + max(answers, default=0)


def _parts(values: Mapping[str, Any]) -> list[str]:
    """The names of an example's texts."""
    return [n for n in ("prompt", "completion", "chosen", "rejected", "messages", "text") if n in values]


def _tokens(values: Mapping[str, Any], encoder: Encoder) -> Steps[dict[str, list[int]]]:
    """The tokens of each part of an example."""
    names = _parts(values)
    if "prompt" not in values:
        ids, _ = yield from encoder.demonstration_steps(values)
        return {names[0]: ids}
    prompt, answers = yield from encoder.answers_steps(values, *names[1:])
    return {"prompt": prompt, **dict(zip(names[1:], answers, strict=True))}


def _shown(
    values: Mapping[str, Any], parts: Mapping[str, list[Any]], encoder: Encoder | None
) -> dict[str, str]:
    """The parts of an example as they are trained on; without a model as they are."""
    if encoder is None:
        return {name: _text_of(values[name]) for name in parts}
    return {name: encoder.tokenizer.decode(ids) for name, ids in parts.items()}


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(f"{m['role']}: {m['content'] or ''}" for m in value)


@contextmanager
def heard() -> Iterator[list[str]]:
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


def model_encoder(location: str, max_length: int | None = None, **options: Any) -> Encoder:
    """The encoder of a model's tokenizer, without its weights.

    Args:
        location: hub id or folder.
        max_length: longest row; None: what the model allows.
        options: of `Encoder`.

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
    return Encoder(
        tokenizer,
        eos_ids=end_ids(tokenizer, generation_config(location)),
        max_length=max_length or getattr(config, "max_position_embeddings", None),
        vocab_size=getattr(config, "vocab_size", None),
        **options,
    )


def generation_config(location: str) -> Any:
    """A model's generation config, or None where it has none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(location)
    except OSError:
        return None
