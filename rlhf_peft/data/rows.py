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
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

ROW = "__row_number__"
"""Column with the number of a row in its file, counted from 1."""

OnBadRow = Literal["error", "skip"]
OnLongRow = Literal["error", "skip", "cut"]

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


class BadRows:
    """Collects the bad rows of a dataset; `finish` raises about them or says how many were left out.

    Args:
        source: what messages call the dataset, such as its path.
        on_bad_row: "error" or "skip".
        stage: name of the stage, for the override that a message prints.
        can_skip: whether "skip" would help, and may be proposed.
        on_long_row: the same for rows that are too long; None: as `on_bad_row`.
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
        self.notes: dict[str, list[int]] = {}

    @contextmanager
    def row(self, number: int) -> Iterator[None]:
        """Note a `BadRow` that is raised inside as row `number`."""
        try:
            yield
        except BadRow as bad:
            self.found.append((number, bad))

    def note(self, number: int, notes: Iterable[str]) -> None:
        """Note what was found in row `number` that is no error; `finish` says it once, with the count."""
        for text in notes:
            self.notes.setdefault(text, []).append(number)

    def finish(self, total: int) -> None:
        """Raise DataError, or warn, if any of `total` rows was bad; warn of what was noted."""
        for text, numbers in self.notes.items():
            log.warning("%s: %s of %s rows %s (first: row %s)", *self._counted(numbers, total, text))
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

    def _counted(self, numbers: list[int], total: int, text: str) -> tuple[str, ...]:
        return self.source, f"{len(numbers):,}", f"{total:,}", text, f"{numbers[0]:,}"

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


def number_of(row: Mapping[str, Any], position: int) -> int:
    """Number of a row in its file, or its place in the dataset, counted from 1."""
    number = row.get(ROW)
    return position + 1 if number is None else int(number)


def columns_of(dataset: Dataset) -> list[str]:
    """The columns as the user knows them."""
    return [name for name in dataset.column_names if name != ROW]


def numbered(dataset: Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows without the number column, each with its number.

    Columns of structs (parquet, the hub) fill every struct with the keys of all others; those that are null are taken
    out again. Columns of JSON hold exactly what their rows held.
    """
    features = dataset.features
    for position, row in enumerate(dataset):
        number = number_of(row, position)
        yield number, {name: without_nulls(v, features[name]) for name, v in row.items() if name != ROW}


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
