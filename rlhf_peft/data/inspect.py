"""Inspects a dataset before training: its format, its bad rows, its lengths, and what it can be used for."""

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
from .progress import with_progress
from .rows import BATCH, BadRow, BadRows, columns_of, numbered
from .tokens import Steps


@dataclass(frozen=True, slots=True)
class Bad:
    """Rows that cannot be used for one reason.

    Attributes:
        count: number of such rows.
        first: number of the first of them in its file.
        reason: the full message about the first.
    """

    count: int
    first: int
    reason: str


@dataclass
class Inspection:
    """The result of inspecting a dataset.

    Attributes:
        source: path or hub id.
        rows: number of rows that could be read.
        columns: names of the columns, without the column of row numbers.
        format: the dataset format of TRL's, or None if the columns make none of them.
        notes: messages of the reader: encodings, separators, rows that could not be read.
        bad: for each kind of problem, the rows that can be read but not used.
        duplicates: number of rows that repeat earlier ones.
        lengths: for each part ("prompt", "chosen", ...), the length of each row in `unit`.
        unit: "tokens", or "words" if no model is given.
        too_long: number of rows that are longer than the context.
        limit: the context length in tokens; None if unknown.
        longer_chosen: share of pairs whose chosen answer is the longer one (equal ones count half); None without
            pairs.
        advice: methods that suit the dataset, and the commands to paste.
        split: the split that was read.
        name: name of the configuration on the hub.
        model: the model that is to be trained; None if not given.
        unread: columns that only the rewards of an RL stage receive.
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
    def location(self) -> dict[str, str]:
        """The dataset's location, as a recipe's `dataset` section writes it."""
        exists = Path(self.source).exists()
        location = {"path": str(Path(self.source).absolute()) if exists else self.source}
        if self.name is not None:
            location["name"] = self.name
        return location if self.split == "train" else {**location, "split": self.split}

    @property
    def usable(self) -> int:
        """Number of rows that a stage could train on."""
        return self.rows - sum(problem.count for problem in self.bad.values())

    def plain(self) -> dict[str, Any]:
        """The inspection as a JSON object."""
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
    """Minimum, median, mean, 95th percentile and maximum of some lengths."""
    ordered = sorted(values)
    quantile = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    mean = sum(ordered) / len(ordered)
    return {
        "min": ordered[0],
        "median": quantile(0.5),
        "mean": mean,
        "95 %": quantile(0.95),
        "max": ordered[-1],
    }


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
        split: split to read.
        name: name of a configuration on the hub.
        columns: renames columns: our name to the file's.
        model: the model that is to be trained, for the commands to paste.
        encoder: encoder of that model; lengths are then in its tokens, and its context is the limit.

    Raises:
        DataError: it cannot be read at all.
    """
    with captured_log() as notes:
        rows = load_rows(path=source, name=name, split=split, columns=columns, on_bad_row="skip")
    if rows.info.description:
        notes.append(rows.info.description)
    inspection = Inspection(
        source, len(rows), columns_of(rows), detect(rows), notes, split=split, name=name, model=model
    )
    if inspection.format is None:
        inspection.advice = mapping_hint(inspection, checkable_column(rows))
        return inspection
    inspection.unread = [
        name for name in inspection.columns if name not in (*inspection.format.columns, *ALSO_READ)
    ]
    if encoder is not None:
        inspection.unit, inspection.limit = "tokens", encoder.max_length
        encoder = encoder.without_limit()
    bad_rows = BadRows(source, "skip")
    _look_at(rows, inspection, inspection.format, encoder, bad_rows)
    for number, bad in bad_rows.rows:
        problem = inspection.bad.get(bad.kind, Bad(0, number, str(bad)))
        inspection.bad[bad.kind] = dataclasses.replace(problem, count=problem.count + 1)
    inspection.notes += [
        f"{note.count:,} rows {text} (first: row {note.first:,})" for text, note in bad_rows.notes.items()
    ]
    inspection.advice = advice(inspection, checkable_column(rows), columns)
    return inspection


def _look_at(
    rows: Any, inspection: Inspection, format: Format, encoder: Encoder | None, bad_rows: BadRows
) -> None:
    """Count the rows that can be used, and record the others in `bad_rows`."""
    seen_digests: set[bytes] = set()
    outcomes = _measured(rows, format, encoder)
    for index, outcome in enumerate(
        with_progress(outcomes, f"{inspection.source}: looking at rows", len(rows))
    ):
        if index % BATCH == 0:
            cache.release()
        if outcome.bad is not None:
            bad_rows.add(outcome.number, outcome.bad)
            continue
        assert outcome.value is not None
        values, parts = outcome.value
        bad_rows.note(outcome.number, [*notes_of(outcome.row), *sorted(outcome.notes)])
        digest = hashlib.blake2b(CANONICAL.encode(values).encode(), digest_size=16).digest()
        inspection.duplicates += digest in seen_digests
        seen_digests.add(digest)
        if not inspection.example:
            inspection.example = {"row": outcome.number, **_shown(values, parts, encoder)}
        _count(inspection, {name: len(part) for name, part in parts.items()})
    cache.release()


def _measured(rows: Any, format: Format, encoder: Encoder | None) -> Iterator[Outcome[Any]]:
    """Each row as an example, with the tokens of its parts, or their words if no model is given."""
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
"""Writes equal examples as equal texts, to find duplicates."""
ALSO_READ = ("tools", "functions", "system", "chosen_prob", "margin")
"""Columns that stages read beside those of a format."""


def _count(inspection: Inspection, lengths: Mapping[str, int]) -> None:
    """Add the lengths of a row's parts to the statistics."""
    for name, length in lengths.items():
        inspection.lengths.setdefault(name, []).append(length)
    inspection.too_long += inspection.limit is not None and sum_of_longest(lengths) > inspection.limit
    if "chosen" in lengths:
        longer = lengths["chosen"] - lengths["rejected"]
        pairs, share = len(inspection.lengths["chosen"]), inspection.longer_chosen or 0.0
        inspection.longer_chosen = share + ((0.5 if longer == 0 else float(longer > 0)) - share) / pairs


def sum_of_longest(lengths: Mapping[str, int]) -> int:
    """Number of tokens of a prompt and its longest answer."""
    answers = [length for name, length in lengths.items() if name != "prompt"]
    return lengths.get("prompt", 0) + max(answers, default=0)


def _parts(values: Mapping[str, Any]) -> list[str]:
    """Names of the texts of an example."""
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
    """The parts of an example as text: decoded tokens, or without a model the texts themselves."""
    if encoder is None:
        return {name: _text_of(values[name]) for name in parts}
    return {name: encoder.tokenizer.decode(ids) for name, ids in parts.items()}


def _text_of(value: Any) -> str:
    """A text, or the messages of a conversation one per line."""
    return value if isinstance(value, str) else "\n".join(f"{m['role']}: {m['content'] or ''}" for m in value)


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect the messages of our logger inside this context, instead of printing them."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    log, handler = logging.getLogger("rlhf_peft"), Collector()
    handlers, propagate = log.handlers[:], log.propagate
    log.handlers[:], log.propagate = [handler], False
    try:
        yield messages
    finally:
        log.handlers[:], log.propagate = handlers, propagate


def model_encoder(location: str, max_length: int | None = None, **options: Any) -> Encoder:
    """The encoder of a model's tokenizer, without its weights.

    Args:
        location: hub id or folder.
        max_length: most tokens of a row; None for the model's own limit.
        options: further arguments of `Encoder`.

    Raises:
        DataError: the tokenizer cannot be read.
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
