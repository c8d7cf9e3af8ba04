"""Rows by number, and what happens to a row that cannot be used.

Every dataset that `load_rows` returns carries the number that each row has in its file (`ROW`). So a message names the
right row after slicing, holding out and leaving out rows. The column never reaches a model or a reward.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

ROW = "__row_number__"
"""Column with the number of a row in its file, counted from 1."""

OnBadRow = Literal["error", "skip"]
OnLongRow = Literal["error", "skip", "cut"]

BATCH = 1000
"""Rows that are read from a dataset at once."""

TOO_LONG = "too long"
"""`BadRow.kind` of a row that has too many tokens."""

log = logging.getLogger("rlhf_peft")


class BadRow(DataError):
    """One row cannot be used; the message is the reason alone.

    Attributes:
        kind: the reason in a few words; rows are counted by it.
        remedy: what the user can do about it, other than leaving the row out.
    """

    def __init__(self, reason: str, kind: str | None = None, remedy: str = "Mend or remove it") -> None:
        super().__init__(reason)
        self.kind = kind or reason
        self.remedy = remedy

    def without_frames(self) -> BadRow:
        """The same error without its traceback, which would keep the whole batch of the row in memory."""
        return BadRow(str(self), self.kind, self.remedy)


@dataclass(slots=True)
class Note:
    """A remark that several rows share and that is no error.

    Attributes:
        first: number of the first such row.
        count: number of such rows.
    """

    first: int
    count: int = 0


class BadRows:
    """Collects the bad rows of a dataset; `finish` raises an error about them or warns how many were left out.

    Args:
        source: name of the dataset in messages, such as its path.
        on_bad_row: "error" or "skip".
        stage: name of the stage, for the override that a message prints.
        can_skip: whether messages may propose "skip".
        on_long_row: the same for rows that are too long; None: as `on_bad_row`.

    Attributes:
        rows: the bad rows: number and error.
        notes: remarks that are no errors, and the rows that they apply to.
        remarks: messages about the whole dataset that have been logged, as [text, line].
        description: how a file was read, for messages (`separator ";"`).
    """

    def __init__(
        self,
        source: str,
        on_bad_row: OnBadRow = "error",
        stage: str | None = None,
        *,
        can_skip: bool = True,
        on_long_row: OnLongRow | None = None,
    ) -> None:
        self.can_skip = can_skip
        self.source = source
        self.on_bad_row = on_bad_row
        self.on_long_row = on_long_row or on_bad_row
        self.stage = stage
        self.rows: list[tuple[int, BadRow]] = []
        self.notes: dict[str, Note] = {}
        self.remarks: list[list[Any]] = []
        self.description = ""

    @contextmanager
    def row(self, number: int) -> Iterator[None]:
        """Record a `BadRow` that is raised inside this context as row `number`."""
        try:
            yield
        except BadRow as bad:
            self.add(number, bad)

    def add(self, number: int, bad: BadRow) -> None:
        """Record that row `number` cannot be used."""
        self.rows.append((number, bad.without_frames()))

    def note(self, number: int, notes: Iterable[str]) -> None:
        """Record remarks on row `number` that are no errors; `finish` logs each once, with the number of rows."""
        for text in notes:
            self.notes.setdefault(text, Note(number)).count += 1

    def remark(self, text: str, line: int | None = None) -> None:
        """Log a message about the whole dataset, or about one line of its file, at once and only once."""
        if [text, line] not in self.remarks:
            self.remarks.append([text, line])
            log.warning("%s: %s", self.source if line is None else f"{self.source}, line {line}", text)

    def reset(self) -> None:
        """Forget all rows and notes, because the rows are read again."""
        self.rows, self.notes = [], {}

    def plain(self) -> dict[str, Any]:
        """Everything that was recorded, as a JSON object."""
        return {
            "description": self.description,
            "remarks": self.remarks,
            "notes": {text: [note.first, note.count] for text, note in self.notes.items()},
            "bad": [[number, str(bad), bad.kind, bad.remedy] for number, bad in self.rows],
        }

    def take(self, record: Mapping[str, Any]) -> None:
        """Restore what `plain` has returned, as if the rows were read again."""
        self.description = record["description"]
        for text, line in record["remarks"]:
            self.remark(text, line)
        self.notes = {text: Note(first, count) for text, (first, count) in record["notes"].items()}
        self.rows = [(number, BadRow(*reason)) for number, *reason in record["bad"]]

    def finish(self, total: int) -> None:
        """Raise DataError, or warn, if any of `total` rows was bad; log the notes."""
        for text, note in self.notes.items():
            log.warning(
                "%s: %s of %s rows %s (first: row %s)",
                self.source,
                f"{note.count:,}",
                f"{total:,}",
                text,
                f"{note.first:,}",
            )
        if not self.rows:
            return
        fatal = [item for item in self.rows if self._policy(item[1]) == "error"]
        if fatal:
            number, first = fatal[0]
            raise DataError(
                f"{self.source}, row {number:,}: {first}{self._more(fatal)}. {self._remedy(first)}"
            )
        number, first = self.rows[0]
        counts = Counter(bad.kind for _, bad in self.rows)
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())
        message = (
            f"{self.source}: left out {len(self.rows):,} of {total:,} rows: {kinds} (first: row {number:,})"
        )
        if len(self.rows) >= total:
            raise DataError(
                f"{message}. No row is left to work with; row {number:,}: {first}. {first.remedy}."
            )
        log.warning(message)

    def _policy(self, bad: BadRow) -> str:
        return self.on_long_row if bad.kind == TOO_LONG else self.on_bad_row

    def _more(self, fatal: list[tuple[int, BadRow]]) -> str:
        if len(fatal) == 1:
            return ""
        return f" ({len(fatal) - 1:,} more bad row{'s' if len(fatal) > 2 else ''})"

    def _remedy(self, bad: BadRow) -> str:
        key = "on_long_row" if bad.kind == TOO_LONG and self.on_bad_row == "skip" else "on_bad_row"
        skip = f", or leave such rows out: {override(self.stage, f'{key}=skip')}" if self.can_skip else "."
        return f"{bad.remedy}{skip}"


def override(stage: str | None, text: str) -> str:
    """The command line override for a key of a dataset: `stages.sft.dataset.on_bad_row=skip`."""
    return f"stages.{stage}.dataset.{text}" if stage else f"dataset.{text}"


def columns_of(dataset: Dataset) -> list[str]:
    """Names of the columns, without the column of row numbers."""
    return [name for name in dataset.column_names if name != ROW]


def numbered(dataset: Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row with its number, without the number column.

    Columns of structs (parquet, the hub) fill every struct with the keys of all others; keys whose value is null are
    removed again. Columns of JSON hold exactly what their rows held.
    """
    features = {name: feature for name, feature in dataset.features.items() if name != ROW}
    batch_start = 0
    for batch in dataset.iter(BATCH):
        numbers = batch.get(ROW)
        columns = [
            [without_nulls(value, feature) for value in batch[name]] if is_nested(feature) else batch[name]
            for name, feature in features.items()
        ]
        size = len(next(iter(batch.values())))
        for index, values in enumerate(zip(*columns, strict=True) if columns else [()] * size):
            number = batch_start + index + 1 if numbers is None or numbers[index] is None else numbers[index]
            yield int(number), dict(zip(features, values, strict=True))
        batch_start += size


def is_nested(feature: Any) -> bool:
    """Whether a column may hold structs; columns of plain values and of JSON do not."""
    return isinstance(feature, dict | list) or getattr(feature, "feature", None) is not None


def without_nulls(value: Any, feature: Any) -> Any:
    """A value without the null keys of its structs; JSON is left as it is.

    Args:
        value: value of a column, or a part of it.
        feature: its `datasets` feature: a dict for structs, an object with `feature` for lists.
    """
    if isinstance(feature, dict) and isinstance(value, dict):
        return {k: without_nulls(v, feature.get(k)) for k, v in value.items() if v is not None}
    inner = getattr(feature, "feature", None)
    return [without_nulls(item, inner) for item in value] if inner and isinstance(value, list) else value


def as_text(names: Iterable[str]) -> str:
    """Names joined for a message: `a, b, c`, or `none`."""
    return ", ".join(names) or "none"


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off the progress bars of `datasets` inside this context."""
    import datasets

    before = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if before:
            datasets.enable_progress_bars()
