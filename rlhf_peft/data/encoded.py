"""Encodes a dataset to rows of token ids and stores them in the cache, from where later starts map them into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import cache
from .batches import Row, in_batches
from .encode import Encoder
from .examples import notes_of
from .identity import encoder_identity, rows_identity
from .progress import with_progress
from .rows import ROW, BadRows, numbered
from .tokens import Steps

if TYPE_CHECKING:
    from datasets import Dataset, Features

Columns = dict[str, Any]

SOURCE_INDEX = "place"
"""Optional column with the index of a row in the dataset that it was encoded from, counted from 0."""

VERSION = 1
"""Version of the encoding code. Increase it whenever the same row may give other ids, errors or notes."""


def ids_and_row(*names: str, **plain: str) -> Features:
    """Features of a dataset with columns of token ids, columns of plain values, and the number of each row.

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
    """Encode each row of a dataset; bad rows are recorded, and reported once all rows are read.

    Args:
        dataset: the rows.
        encoder: encoder of the model.
        start: starts the steps that encode one row, to any number of new rows.
        features: features of the new rows.
        bad: collects the bad rows, and the notes on others.
        what: name of these steps in the cache.
        settings: JSON values that the steps depend on, besides rows and encoder.

    Returns:
        The new rows, each with the number of the row that it was made from.

    Raises:
        DataError: rows are bad, or none is left.
    """

    def write(open_sink: cache.OpenSink) -> cache.Notes:
        bad.reset()
        with open_sink() as sink, cache.batch_writer(sink, features) as put:
            encoded_rows: list[Columns] = []
            outcomes = in_batches(numbered(dataset), start, encoder)
            source_index = -1
            for outcome in with_progress(outcomes, description, len(dataset)):
                if outcome.bad is not None:
                    bad.add(outcome.number, outcome.bad)
                source_index += 1
                encoded_rows += [
                    {**values, ROW: outcome.number, SOURCE_INDEX: source_index}
                    for values in outcome.value or ()
                ]
                bad.note(outcome.number, [*notes_of(outcome.row), *sorted(outcome.notes)])
                if len(encoded_rows) >= cache.BATCH:
                    put(encoded_rows)
                    cache.release()
                    encoded_rows = []
            put(encoded_rows)
        return bad.plain()

    description = f"{bad.stage or bad.source}: encoding rows"
    policy = [bad.on_bad_row, bad.on_long_row]
    identities = (lambda: encoder_identity(encoder), lambda: rows_identity(dataset))
    key = cache.key_of(what, VERSION, policy, settings, *identities)
    rows, notes = cache.load_or_make("encoded", key, write, f"{bad.source}, {what}")
    cache.release()
    bad.take(notes)
    bad.finish(len(dataset))
    return rows
