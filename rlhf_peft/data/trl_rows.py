"""Datasets of token ids for TRL's trainers, which then need not tokenize, truncate or filter rows themselves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .encode import Encoder
from .encoded import Columns, encode_dataset, ids_and_row
from .examples import example
from .formats import Format
from .rows import BadRow, BadRows, OnBadRow, OnLongRow
from .tokens import Steps

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""The label of a token that is not trained on."""


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
    """Encode rows into the columns that a prepared dataset of a TRL trainer has.

    For SFT these are `input_ids` and `labels`; for DPO `prompt_ids`, `chosen_ids` and `rejected_ids`; for KTO
    `prompt_ids`, `completion_ids` and `label`. Each row keeps its number in the file (`ROW`), which no trainer
    reads.

    Args:
        dataset: rows in `format`.
        format: the result of `require`.
        encoder: encoder of the model.
        unpair: turn each preference pair into two rows with a label (for KTO).
        completion_only: train SFT on completions alone; None: only if rows have a prompt and a completion.
        assistant_only: train SFT on the assistant's messages alone, in rows of messages.
        on_bad_row: "error" or "skip".
        on_long_row: the same for rows over the encoder's `max_length`, or "cut"; None: as `on_bad_row`.
        source: name of the dataset in messages.
        stage: name of the stage, for the override that a message prints.

    Raises:
        DataError: a row is bad, or none is left.
    """
    bad = BadRows(source, on_bad_row, stage, on_long_row=on_long_row)
    settings: dict[str, Any] = {}
    if format.kind == "preference":
        columns = unpaired if unpair else preference
        names = ("prompt_ids", "completion_ids") if unpair else ("prompt_ids", "chosen_ids", "rejected_ids")
    elif format.kind == "unpaired_preference":
        columns, names = labelled, ("prompt_ids", "completion_ids")
    else:
        completions = format.kind == "prompt_completion" if completion_only is None else completion_only
        settings = {"only": completions, "assistant": assistant_only}
        columns, names = partial(demonstration, **settings), ("input_ids", "labels")
    features = ids_and_row(*names, **({"label": "bool"} if "completion_ids" in names else {}))

    def start(row: Mapping[str, Any]) -> Steps[list[Columns]]:
        values = example(row, format, system=encoder.system, words=True)
        return (yield from columns(values, encoder))

    settings |= {"unpair": unpair, "format": [format.kind, format.columns, format.conversational]}
    return encode_dataset(dataset, encoder, start, features, bad, what="trl", settings=settings)


def preference(row: Mapping[str, Any], encoder: Encoder) -> Steps[list[Columns]]:
    """A preference pair as DPO reads it. DPO knows no probabilities, so the chosen answer must be the likelier one."""
    if row.get("chosen_prob", 1.0) < 0.5:
        raise BadRow(
            f"chosen_prob={row['chosen_prob']:g} says that the rejected answer is the better one",
            "whose chosen_prob is below 0.5",
            "Exchange the answers",
        )
    prompt, chosen, rejected = yield from both_answers(row, encoder)
    return [{"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}]


def both_answers(row: Mapping[str, Any], encoder: Encoder) -> Steps[tuple[list[int], list[int], list[int]]]:
    """Ids of a pair's prompt, chosen and rejected answer; raises BadRow if both answers have the same ids."""
    prompt, (chosen, rejected) = yield from encoder.answers_steps(row, "chosen", "rejected")
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same tokens", "with chosen equal to rejected")
    return prompt, chosen, rejected


def unpaired(row: Mapping[str, Any], encoder: Encoder) -> Steps[list[Columns]]:
    """A preference pair as two rows with a label, as KTO reads them."""
    (pair,) = yield from preference(row, encoder)
    return [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair["chosen_ids"], "label": True},
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair["rejected_ids"], "label": False},
    ]


def labelled(row: Mapping[str, Any], encoder: Encoder) -> Steps[list[Columns]]:
    """An answer with its label, as KTO reads it."""
    prompt, (answer,) = yield from encoder.answers_steps(row, "completion")
    return [{"prompt_ids": prompt, "completion_ids": answer, "label": row["label"]}]


def demonstration(
    row: Mapping[str, Any], encoder: Encoder, only: bool, assistant: bool
) -> Steps[list[Columns]]:
    """A demonstration, as SFT reads it."""
    tokens, trained = yield from encoder.demonstration_steps(
        row, completion_only=only, assistant_only=assistant
    )
    if not any(trained):
        raise BadRow("no token of it is trained on", "of which no token is trained on")
    labels = tokens
    if not all(trained):
        labels = [token if is_trained else IGNORED for token, is_trained in zip(tokens, trained, strict=True)]
    return [{"input_ids": tokens, "labels": labels}]
