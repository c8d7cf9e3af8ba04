"""Rows by number, and what happens to a row that cannot be used.

Every dataset that `load_rows` returns carries the number that each row has in its file (`ROW`), so that
a message names the right row after slices, hold-outs and left-out rows. The column never reaches a model or a
reward.
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
"""The kind of a bad row that has too many tokens."""

log = logging.getLogger("rlhf_peft")


class BadRow(DataError):
    """One row cannot be used; the message is the reason alone.

    Attributes:
        kind: the reason in a few words, for counting.
        remedy: what to do about it, beside leaving the row out.
    """

    def __init__(self, reason: str, kind: str | None = None, remedy: str = "Mend or remove it") -> None:
        super().__init__(reason)
        self.kind = kind or reason
        self.remedy = remedy

    def without_frames(self) -> BadRow:
        """The same without its traceback, which would keep everything alive that its row's batch was encoded to."""
        return BadRow(str(self), self.kind, self.remedy)


@dataclass(slots=True)
class Note:
    """What rows have in common that is no error.

    Attributes:
        first: number of the first of them.
        count: of them.
    """

    first: int
    count: int = 0


class BadRows:
    """Collects the bad rows of a dataset; `finish` raises about them or says how many were left out.

    Args:
        source: what messages call the dataset, such as its path.
        on_bad_row: "error" or "skip".
        stage: name of the stage, for the override that a message prints.
        can_skip: whether "skip" would help, and may be proposed.
        on_long_row: the same for rows that are too long; None: as `on_bad_row`.

    Attributes:
        found: the bad rows, with their numbers.
        notes: what is no error, in words, and in which rows it was found.
        remarks: what was said of the whole dataset.
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
        self.found: list[tuple[int, BadRow]] = []
        self.notes: dict[str, Note] = {}
        self.remarks: list[list[Any]] = []
        self.description = ""

    @contextmanager
    def row(self, number: int) -> Iterator[None]:
        """Note a `BadRow` that is raised inside as row `number`."""
        try:
            yield
        except BadRow as bad:
            self.add(number, bad)

    def add(self, number: int, bad: BadRow) -> None:
        """Note that row `number` cannot be used."""
        self.found.append((number, bad.without_frames()))

    def note(self, number: int, notes: Iterable[str]) -> None:
        """Note what was found in row `number` that is no error; `finish` says it once, with the count."""
        for text in notes:
            self.notes.setdefault(text, Note(number)).count += 1

    def remark(self, text: str, line: int | None = None) -> None:
        """Say at once, and only once, what is to be known of the whole dataset, or of a line of its file."""
        if [text, line] not in self.remarks:
            self.remarks.append([text, line])
            log.warning("%s: %s", self.source if line is None else f"{self.source}, line {line}", text)

    def reset(self) -> None:
        """Forget the rows: they are read again."""
        self.found, self.notes = [], {}

    def plain(self) -> dict[str, Any]:
        """What was noted, as JSON holds it."""
        return {
            "description": self.description,
            "remarks": self.remarks,
            "notes": {text: [note.first, note.count] for text, note in self.notes.items()},
            "bad": [[number, str(bad), bad.kind, bad.remedy] for number, bad in self.found],
        }

    def take(self, noted: Mapping[str, Any]) -> None:
        """Note what `plain` has returned, as if the rows were read again."""
        self.description = noted["description"]
        for text, line in noted["remarks"]:
            self.remark(text, line)
        self.notes = {text: Note(first, count) for text, (first, count) in noted["notes"].items()}
        self.found = [(number, BadRow(*reason)) for number, *reason in noted["bad"]]

    def finish(self, total: int) -> None:
        """Raise DataError, or warn, if any of `total` rows was bad; warn of what was noted."""
        for text, note in self.notes.items():
            log.warning(
                "%s: %s of %s rows %s (first: row %s)",
                self.source,
                f"{note.count:,}",
                f"{total:,}",
                text,
                f"{note.first:,}",
            )
        if not self.found:
            return
        fatal = [item for item in self.found if self._policy(item[1]) == "error"]
        if fatal:
            number, first = fatal[0]
            raise DataError(
                f"{self.source}, row {number:,}: {first}{self._more(fatal)}. {self._remedy(first)}"
            )
        number, first = self.found[0]
        counts = Counter(bad.kind for _, bad in self.found)
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())
        message = (
            f"{self.source}: left out {len(self.found):,} of {total:,} rows: {kinds} (first: row {number:,})"
        )
        if len(self.found) >= total:
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
    """The words that set a key of a dataset on the command line: `stages.sft.dataset.on_bad_row=skip`."""
    return f"stages.{stage}.dataset.{text}" if stage else f"dataset.{text}"


def columns_of(dataset: Dataset) -> list[str]:
    """The columns as the user knows them."""
    return [name for name in dataset.column_names if name != ROW]


def numbered(dataset: Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows without the number column, each with its number.

    Columns of structs (parquet, the hub) fill every struct with the keys of all others; those that are null are taken
    out again. Columns of JSON hold exactly what their rows held.
    """
    features = {name: feature for name, feature in dataset.features.items() if name != ROW}
    position = 0
    for batch in dataset.iter(BATCH):
        numbers = batch.get(ROW)
        columns = [
            [without_nulls(value, feature) for value in batch[name]] if is_nested(feature) else batch[name]
            for name, feature in features.items()
        ]
        size = len(next(iter(batch.values())))
        for place, values in enumerate(zip(*columns, strict=True) if columns else [()] * size):
            number = position + place + 1 if numbers is None or numbers[place] is None else numbers[place]
            yield int(number), dict(zip(features, values, strict=True))
        position += size


def is_nested(feature: Any) -> bool:
    """Whether a column may hold structs: plain values and JSON have none."""
    return isinstance(feature, dict | list) or getattr(feature, "feature", None) is not None


def without_nulls(value: Any, feature: Any) -> Any:
    """A value without the keys that are null in its structs; JSON is left as it is.

    Args:
        value: of a column or of a part of it.
        feature: as `datasets` describes it: a dict for structs, an object with `feature` for lists.
    """
    if isinstance(feature, dict) and isinstance(value, dict):
        return {k: without_nulls(v, feature.get(k)) for k, v in value.items() if v is not None}
    inner = getattr(feature, "feature", None)
    return [without_nulls(item, inner) for item in value] if inner and isinstance(value, list) else value


def as_text(names: Iterable[str]) -> str:
    """Names for a message: `a, b, c`, or `none`."""
    return ", ".join(names) or "none"


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars from `datasets` inside."""
    import datasets

    before = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if before:
            datasets.enable_progress_bars()
