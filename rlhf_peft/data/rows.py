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

ROW = "_row"
"""Column with the number of a row in its file, counted from 1."""

OnBadRow = Literal["error", "skip"]

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
    """

    def __init__(
        self,
        source: str,
        on_bad_row: OnBadRow = "error",
        stage: str | None = None,
        *,
        can_skip: bool = True,
    ) -> None:
        self.can_skip = can_skip
        self.source = source
        self.on_bad_row = on_bad_row
        self.stage = stage
        self.found: list[tuple[int, BadRow]] = []

    @contextmanager
    def row(self, number: int) -> Iterator[None]:
        """Note a `BadRow` that is raised inside as row `number`."""
        try:
            yield
        except BadRow as bad:
            self.found.append((number, bad))

    def finish(self, total: int) -> None:
        """Raise DataError, or warn once, if any of `total` rows was bad."""
        if not self.found:
            return
        number, first = self.found[0]
        if self.on_bad_row == "error":
            more = f" ({len(self.found) - 1:,} more bad rows)" if len(self.found) > 1 else ""
            skip = (
                f", or leave such rows out: {override(self.stage, 'on_bad_row=skip')}"
                if self.can_skip
                else "."
            )
            raise DataError(f"{self.source}, row {number:,}: {first}{more}. {first.remedy}{skip}")
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
    """Rows without the number column, each with its number."""
    for position, row in enumerate(dataset):
        number = number_of(row, position)
        yield number, {name: value for name, value in row.items() if name != ROW}


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
