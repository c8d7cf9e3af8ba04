"""Encodes many rows at once: one call of the tokenizer for all texts of a batch, in a second thread.

While the tokenizer works on one batch, the next one is read, checked and written by the chat template.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

from .encode import Encoder
from .rows import BadRow
from .tokens import Steps, Tokens, tokenize

T = TypeVar("T")
Row = Mapping[str, Any]

ROWS = 256
"""Number of rows of a batch."""
YOUNG = 1
"""The generations 0 and 1 of the garbage collector."""
AHEAD = 4
"""Batches that wait for the tokenizer or are with it, so that it always has one to work on."""


@dataclass(slots=True)
class Outcome(Generic[T]):
    """The result of encoding a row.

    Attributes:
        number: number of the row in its file, counted from 1.
        row: its values by column.
        value: the encoded value; None if the row is bad.
        bad: why the row cannot be used.
        notes: remarks on the row that are no errors.
    """

    number: int
    row: Row
    value: T | None = None
    bad: BadRow | None = None
    notes: set[str] = field(default_factory=set)


class _Job(Generic[T]):
    """A row that is being encoded: its steps, and the texts whose tokens they wait for."""

    __slots__ = ("encoder", "outcome", "steps", "texts")

    def __init__(self, outcome: Outcome[T], steps: Steps[T], encoder: Encoder) -> None:
        self.outcome, self.steps, self.encoder = outcome, steps, encoder
        self.texts: list[str] = []
        self.go_on(None)

    def go_on(self, tokens: list[Tokens] | None) -> None:
        """Send the tokens and run to the next texts, or to the end."""
        self.texts = []
        try:
            self.texts = next(self.steps) if tokens is None else self.steps.send(tokens)
        except StopIteration as end:
            self.outcome.value = end.value
        except BadRow as bad:
            self.outcome.bad = bad.without_frames()
        self.outcome.notes.update(self.encoder.take_notes())


class _Batch(Generic[T]):
    """Rows that are encoded together: those that are not finished wait for the tokens of their next texts."""

    def __init__(self, jobs: list[_Job[T]]) -> None:
        self.jobs = jobs
        self.open_jobs = [job for job in jobs if job.texts]

    @property
    def texts(self) -> list[str]:
        """The texts whose tokens are needed next."""
        return [text for job in self.open_jobs for text in job.texts]

    def go_on(self, tokens: list[Tokens]) -> None:
        """Take the tokens of `texts`."""
        start = 0
        for job in self.open_jobs:
            size = len(job.texts)
            job.go_on(tokens[start : start + size])
            start += size
        self.open_jobs = [job for job in self.open_jobs if job.texts]


def in_batches(
    rows: Iterable[tuple[int, Row]], start: Callable[[Row], Steps[T]], encoder: Encoder
) -> Iterator[Outcome[T]]:
    """Encode rows in batches, and yield the outcome of each row in order.

    Args:
        rows: rows with their numbers.
        start: starts the steps of a row; a `BadRow` that they raise ends that row alone.
        encoder: the encoder that the steps belong to.
    """
    rows = iter(rows)
    tokenizer = encoder.tokenizer
    batches: deque[_Batch[T]] = deque()  # in the order of their rows
    running: deque[tuple[_Batch[T], Future[list[Tokens]]]] = deque()  # in the order of their texts
    with ThreadPoolExecutor(1, "tokenizer") as thread, _only_young_garbage():

        def submit(batch: _Batch[T]) -> None:
            running.append((batch, thread.submit(tokenize, tokenizer, batch.texts)))

        more = True
        while more or running:
            while more and len(running) < AHEAD:
                jobs = [
                    _Job(Outcome[T](number, row), start(row), encoder) for number, row in islice(rows, ROWS)
                ]
                more = bool(jobs)
                if more:
                    batches.append(_Batch(jobs))
                    submit(batches[-1])
            if not running:
                return
            batch, tokens = running.popleft()
            batch.go_on(tokens.result())
            gc.collect(YOUNG)  # Each text that a template writes leaves a cycle of objects behind.
            if batch.open_jobs:
                submit(batch)
            while batches and not batches[0].open_jobs:
                for job in batches.popleft().jobs:
                    yield job.outcome


@contextmanager
def _only_young_garbage() -> Iterator[None]:
    """Let the garbage collector search only young objects, and only when `gc.collect(YOUNG)` is called.

    Otherwise the many new objects of a pass let it search all older ones again and again, which took a sixth of the
    time, and most of it in a program with many objects.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
