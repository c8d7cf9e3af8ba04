"""Datasets of token ids for TRL's trainers, which so have nothing to tokenise, cut or leave out themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy

from .encode import Encoder
from .examples import example, notes_of
from .formats import Format
from .rows import ROW, BadRow, BadRows, OnBadRow, OnLongRow, numbered, quiet

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""The label of a token that is not trained on."""

Columns = dict[str, Any]


def for_trl(
    dataset: Dataset,
    format: Format,
    encoder: Encoder,
    *,
    unpair: bool = False,
    completion_only: bool | None = None,
    assistant_only: bool = False,
    on_bad_row: OnBadRow = "error",
    on_long_row: OnLongRow | None = None,
    source: str = "dataset",
    stage: str | None = None,
) -> Dataset:
    """The rows as a trainer of TRL's has them once it has prepared them.

    For SFT `input_ids` and `labels`; for DPO `prompt_ids`, `chosen_ids` and `rejected_ids`; for KTO `prompt_ids`,
    `completion_ids` and `label`. Each row keeps its number in the file (`ROW`), which no trainer reads.

    Args:
        dataset: rows in `format`.
        format: what `require` found.
        encoder: of the model.
        unpair: turn each preference pair into two rows with a label (for KTO).
        completion_only: train SFT on completions alone; None: where rows have a prompt and a completion.
        assistant_only: train SFT on what the assistant says alone, in rows of messages.
        on_bad_row: "error" or "skip".
        on_long_row: the same for rows over the encoder's `max_length`, or "cut"; None: as `on_bad_row`.
        source: what messages call the dataset.
        stage: name of the stage, for the override that a message prints.

    Raises:
        DataError: a row is bad, or none is left.
    """
    bad = BadRows(source, on_bad_row, stage, on_long_row=on_long_row)
    if format.kind == "preference":
        columns = unpaired if unpair else preference
    elif format.kind == "unpaired_preference":
        columns = labelled
    else:
        only = format.kind == "prompt_completion" if completion_only is None else completion_only

        def columns(row: Mapping[str, Any], encoder: Encoder) -> Iterator[Columns]:
            yield demonstration(row, encoder, only, assistant_only)

    rows = [
        {**made, ROW: number} for number, made in encoded(dataset, format, encoder, columns, bad, words=True)
    ]
    import datasets

    with quiet():
        return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]})


def encoded(
    dataset: Dataset,
    format: Format,
    encoder: Encoder,
    columns: Callable[[Mapping[str, Any], Encoder], Iterator[Any]],
    bad: BadRows,
    *,
    words: bool = False,
) -> Iterator[tuple[int, Any]]:
    """What is made of each row, with its number; bad rows are noted, and reported once all are read.

    Args:
        dataset: rows in `format`.
        format: of the rows.
        encoder: of the model.
        columns: makes something of an example.
        bad: takes bad rows, and what the encoder noted.
        words: split plain answers without a prompt at a blank; see `example`.
    """
    made: list[tuple[int, Any]] = []
    for number, row in numbered(dataset):
        with bad.row(number):
            made += [
                (number, one)
                for one in columns(example(row, format, system=encoder.system, words=words), encoder)
            ]
        bad.note(number, [*notes_of(row), *encoder.take_notes()])
    bad.finish(len(dataset))
    yield from made


def preference(row: Mapping[str, Any], encoder: Encoder) -> Iterator[Columns]:
    """A pair, as DPO has it; it knows no probabilities, so the chosen answer must be the likelier one."""
    if row.get("chosen_prob", 1.0) < 0.5:
        raise BadRow(
            f"chosen_prob={row['chosen_prob']:g} says that the rejected answer is the better one",
            "whose chosen_prob is below 0.5",
            "Exchange the answers",
        )
    prompt, chosen, rejected = both_answers(row, encoder)
    yield {"prompt_ids": ids(prompt), "chosen_ids": ids(chosen), "rejected_ids": ids(rejected)}


def both_answers(row: Mapping[str, Any], encoder: Encoder) -> tuple[list[int], list[int], list[int]]:
    """Ids of a pair's prompt, chosen and rejected answer; BadRow where the answers have the same."""
    prompt, (chosen, rejected) = encoder.answers(row, "chosen", "rejected")
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same tokens", "with chosen equal to rejected")
    return prompt, chosen, rejected


def unpaired(row: Mapping[str, Any], encoder: Encoder) -> Iterator[Columns]:
    """A pair as two rows with a label, as KTO has them."""
    for pair in preference(row, encoder):
        yield {"prompt_ids": pair["prompt_ids"], "completion_ids": pair["chosen_ids"], "label": True}
        yield {"prompt_ids": pair["prompt_ids"], "completion_ids": pair["rejected_ids"], "label": False}


def labelled(row: Mapping[str, Any], encoder: Encoder) -> Iterator[Columns]:
    """An answer with its label, as KTO has it."""
    prompt, (answer,) = encoder.answers(row, "completion")
    yield {"prompt_ids": ids(prompt), "completion_ids": ids(answer), "label": row["label"]}


def demonstration(row: Mapping[str, Any], encoder: Encoder, only: bool, assistant: bool) -> Columns:
    """A demonstration, as SFT has it."""
    tokens, trained = encoder.demonstration(row, completion_only=only, assistant_only=assistant)
    if not any(trained):
        raise BadRow("no token of it is trained on", "of which no token is trained on")
    return {"input_ids": ids(tokens), "labels": numpy.where(trained, ids(tokens), IGNORED)}


def ids(tokens: list[int]) -> Any:
    """Tokens in little memory."""
    return numpy.asarray(tokens, numpy.int32)
