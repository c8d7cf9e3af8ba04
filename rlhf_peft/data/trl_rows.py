"""Datasets for TRL's trainers: its own columns, prompts apart, system message in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .checks import check_row, label_of
from .conversation import explicit, from_sharegpt, tidy, with_system
from .encode import Encoder
from .formats import Format
from .rows import ROW, BadRow, BadRows, OnBadRow, numbered, quiet

if TYPE_CHECKING:
    from datasets import Dataset


def for_trl(
    dataset: Dataset,
    format: Format,
    *,
    unpair: bool = False,
    encoder: Encoder | None = None,
    system: str | None = None,
    on_bad_row: OnBadRow = "error",
    source: str = "dataset",
    stage: str | None = None,
) -> Dataset:
    """The rows as a TRL trainer wants them: only the format's columns, the prompt explicit, bad rows out.

    Each row keeps its number in the file (`ROW`), which no trainer reads.

    Args:
        dataset: rows in `format`.
        format: what `require` found.
        unpair: turn each preference pair into two rows with a label (for KTO).
        encoder: of the model: rows over its `max_length`, which trainers would cut silently, are bad; its
            system message is used, and its template arguments become a column, where TRL looks for them.
        system: put before conversations that have no system message; default: the encoder's.
        on_bad_row: "error" or "skip".
        source: what messages call the dataset.
        stage: name of the stage, for the override that a message prints.

    Raises:
        DataError: a row is bad, or none is left.
    """
    import datasets

    bad = BadRows(source, on_bad_row, stage)
    if system is None and encoder is not None:
        system = encoder.system
    rows = []
    for number, row in numbered(dataset):
        with bad.row(number):
            values = trl_row(row, format, system)
            if encoder is not None:
                check_fit(values, encoder)
            rows.append({**values, ROW: number})
    bad.finish(len(dataset))
    if unpair and format.kind == "preference":
        rows = [half for row in rows for half in unpaired(row)]
    if encoder is not None and encoder.template_kwargs and format.conversational:
        rows = [{**row, "chat_template_kwargs": encoder.template_kwargs} for row in rows]
    with quiet():
        return datasets.Dataset.from_list(rows)


def check_fit(row: Mapping[str, Any], encoder: Encoder) -> None:
    """Raise BadRow if the model cannot read a row whole."""
    if "chosen" in row:
        for ids in encoder.pair(row):
            encoder.check_length(ids)
    elif set(row) == {"prompt"}:
        encoder.check_length(encoder.prompt(row), "the prompt")
    else:
        encoder.check_length(encoder.completion(row))


def trl_row(row: Mapping[str, Any], format: Format, system: str | None = None) -> dict[str, Any]:
    """One row in its format's own columns; BadRow if it cannot be used."""
    if format.kind == "preference":
        row = checked_pair(row, format, words=True)
        names: tuple[str, ...] = ("prompt", "chosen", "rejected")
    else:
        row = dict(row)
        if format.columns == ("conversations",):
            row["conversations"] = from_sharegpt(row["conversations"] or [])
        check_row(row, format)
        names = format.columns
    values = {name: tidy(row[name]) if isinstance(row[name], list) else row[name] for name in names}
    if "label" in values:
        values["label"] = label_of(values["label"])
    if "conversations" in values:
        values = {"messages": values["conversations"]}
    opening = "prompt" if "prompt" in values else "messages"
    if opening in values:
        values[opening] = with_system(values[opening], system)
    if "tools" in row:
        values["tools"] = row["tools"]
    return values


def checked_pair(row: Mapping[str, Any], format: Format, *, words: bool = False) -> dict[str, Any]:
    """A preference row with its prompt apart; BadRow if it cannot be used."""
    for name in ("chosen", "rejected"):
        if row[name] is None or not isinstance(row[name], str | list):
            raise BadRow(f"{name} is {'empty' if row[name] is None else 'not text'}", f"with an empty {name}")
    if type(row["chosen"]) is not type(row["rejected"]):
        raise BadRow("chosen and rejected are not of one type", "with answers of different types")
    if row["chosen"] == row["rejected"]:
        raise BadRow("chosen and rejected are the same", "with chosen equal to rejected")
    parts = explicit(row, words=words)
    check_row(parts, format)
    return parts


def unpaired(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A preference pair as two rows with a label."""
    rest = {name: value for name, value in row.items() if name not in ("chosen", "rejected")}
    return [
        {**rest, "completion": row["chosen"], "label": True},
        {**rest, "completion": row["rejected"], "label": False},
    ]
