"""Rows of token ids, encoded in batches and kept on the disk, from where every later start maps them into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import cache
from .batches import Row, in_batches
from .encode import Encoder
from .examples import notes_of
from .identity import encoder_identity, rows_identity
from .progress import shown
from .rows import ROW, BadRows, numbered
from .tokens import Steps

if TYPE_CHECKING:
    from datasets import Dataset, Features

Columns = dict[str, Any]

PLACE = "place"
"""Column with the place of a row in the dataset that it was encoded from, counted from 0, where it is asked for."""

VERSION = 1
"""Of the code that encodes: one more whenever a row may be encoded to other ids, refused, or noted in other words."""


def ids_and_row(*names: str, **plain: str) -> Features:
    """Columns of token ids, columns of plain values, and the number of each row.

    Args:
        names: columns of token ids.
        plain: the other columns with their types.
    """
    import datasets

    ids = {name: datasets.List(datasets.Value("int32")) for name in names}
    values = {name: datasets.Value(kind) for name, kind in plain.items()}
    return datasets.Features({**ids, **values, ROW: datasets.Value("int64")})


def encode_dataset(
    dataset: Dataset,
    encoder: Encoder,
    start: Callable[[Row], Steps[list[Columns]]],
    features: Features,
    bad: BadRows,
    *,
    what: str,
    settings: Mapping[str, Any],
) -> Dataset:
    """What is made of each row, with its number; bad rows are noted, and reported once all are read.

    Args:
        dataset: the rows.
        encoder: of the model.
        start: the steps that make rows of token ids of a row.
        features: of these rows.
        bad: takes bad rows, and what was noted in others.
        what: names these steps in the cache.
        settings: what they depend on beside rows and encoder, as JSON holds it.

    Raises:
        DataError: rows are bad, or none is left.
    """

    def write(open_sink: cache.OpenSink) -> cache.Noted:
        bad.reset()
        with open_sink() as sink, cache.batch_writer(sink, features) as put:
            made: list[Columns] = []
            outcomes = in_batches(numbered(dataset), start, encoder)
            place = -1
            for outcome in shown(outcomes, what_is_done, len(dataset)):
                if outcome.bad is not None:
                    bad.add(outcome.number, outcome.bad)
                place += 1
                made += [{**one, ROW: outcome.number, PLACE: place} for one in outcome.value or ()]
                bad.note(outcome.number, [*notes_of(outcome.row), *sorted(outcome.notes)])
                if len(made) >= cache.BATCH:
                    put(made)
                    cache.release()
                    made = []
            put(made)
        return bad.plain()

    what_is_done = f"{bad.stage or bad.source}: encoding rows"
    policy = [bad.on_bad_row, bad.on_long_row]
    key = cache.key_of(
        what,
        VERSION,
        policy,
        settings,
        lambda: encoder_identity(encoder),
        lambda: rows_identity(dataset),
    )
    rows, noted = cache.kept("encoded", key, write, f"{bad.source}, {what}")
    cache.release()
    bad.take(noted)
    bad.finish(len(dataset))
    return rows
