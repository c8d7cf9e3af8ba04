"""Encoded prompts and preference pairs, and the stream that deals prompts out."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DataError
from .checks import check_value
from .conversation import explicit, is_messages, tidy, with_system
from .encode import Encoder
from .formats import detect
from .rows import BadRow, BadRows, OnBadRow, numbered
from .trl_rows import checked_pair

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        ids: [P] int64.
        columns: the dataset's row, `prompt` among them, with its system message.
        index: number of the row in its file, counted from 0.
    """

    ids: Tensor
    columns: dict[str, Any]
    index: int


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference.

    Attributes:
        chosen_ids: [T] int64, prompt, answer and end.
        rejected_ids: [T'] int64.
        label: probability that the chosen answer is the better one.
        margin: by how much, in reward; 0 where the dataset has none.
        prompt_length: leading tokens that both share as their prompt.
        index: number of the row in its file, counted from 0.
    """

    chosen_ids: Tensor
    rejected_ids: Tensor
    label: float = 1.0
    margin: float = 0.0
    prompt_length: int = 0
    index: int = 0


def encode_prompts(
    dataset: Dataset,
    encoder: Encoder,
    *,
    max_new_tokens: int = 0,
    on_bad_row: OnBadRow = "error",
    source: str = "dataset",
    stage: str | None = None,
) -> list[Prompt]:
    """The prompts of a dataset, in its order.

    Args:
        dataset: rows with `prompt`, or with `chosen` and `rejected` that share one.
        encoder: of the model that will answer.
        max_new_tokens: room that an answer needs after its prompt.
        on_bad_row: "error" or "skip", for rows that are empty, of the wrong type or too long.
        source: what messages call the dataset.
        stage: name of the stage, for the override that a message prints.

    Raises:
        DataError: a row is bad, or none is left.
    """
    bad = BadRows(source, on_bad_row, stage)
    prompts = []
    for number, row in numbered(dataset):
        with bad.row(number):
            columns = prompt_columns(row, encoder.system)
            ids = encoder.prompt({"prompt": columns["prompt"]})
            encoder.check_length(ids, "the prompt", max_new_tokens)
            prompts.append(Prompt(torch.tensor(ids, dtype=torch.int64), columns, number - 1))
    bad.finish(len(dataset))
    return prompts


def prompt_columns(row: dict[str, Any], system: str | None) -> dict[str, Any]:
    """A row with its prompt, checked, apart and with its system message."""
    if "chosen" in row and "rejected" in row and not is_messages(row.get("prompt")):
        row = {**row, "prompt": explicit(row)["prompt"]}
    prompt = row.get("prompt")
    check_value(prompt, "prompt", messages=is_messages(prompt))
    return {**row, "prompt": with_system(tidy(prompt), system) if is_messages(prompt) else prompt}


def encode_pairs(
    dataset: Dataset,
    encoder: Encoder,
    *,
    on_bad_row: OnBadRow = "error",
    source: str = "dataset",
    stage: str | None = None,
) -> list[Pair]:
    """The preference pairs of a dataset, in its order.

    Optional columns: `chosen_prob`, or `label` where it holds fractions, the probability that the chosen
    answer is the better one; `margin`, by how much.

    Args:
        dataset: rows with `chosen` and `rejected`, perhaps `prompt`.
        encoder: of the model that will read them.
        on_bad_row: "error" or "skip", for rows that are empty, of a wrong type, without preference, too long.
        source: what messages call the dataset.
        stage: name of the stage, for the override that a message prints.

    Raises:
        DataError: a row is bad, or none is left.
    """
    format = detect(dataset)
    if format is None or format.kind != "preference":
        raise DataError(f"{source}: preference pairs have the columns chosen and rejected.")
    bad = BadRows(source, on_bad_row, stage)
    soft = soft_label(dataset)
    pairs = []
    for number, row in numbered(dataset):
        with bad.row(number):
            pairs.append(encode_pair(checked_pair(row, format), encoder, number - 1, soft))
    bad.finish(len(dataset))
    return pairs


def soft_label(dataset: Dataset) -> str | None:
    """The column that holds the probability of the chosen answer; a `label` of integers is something else."""
    if "chosen_prob" in dataset.column_names:
        return "chosen_prob"
    kind = str(getattr(dataset.features.get("label"), "dtype", ""))
    return "label" if kind.startswith("float") else None


def encode_pair(row: Mapping[str, Any], encoder: Encoder, index: int, soft: str | None = None) -> Pair:
    """One row, its prompt apart, as a Pair; BadRow if it cannot be used."""
    prompt = encoder.prompt(row)
    chosen, rejected = encoder.pair(row)
    encoder.check_length(chosen, "the chosen answer with its prompt")
    encoder.check_length(rejected, "the rejected answer with its prompt")
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same tokens", "with chosen equal to rejected")
    label = figure(row, soft, 1.0) if soft else 1.0
    if not 0 <= label <= 1:
        raise BadRow(
            f"the probability of the chosen answer is {label:g}, expected 0 to 1", "with a wrong label"
        )
    return Pair(
        torch.tensor(chosen, dtype=torch.int64),
        torch.tensor(rejected, dtype=torch.int64),
        label,
        figure(row, "margin", 0.0),
        len(prompt),
        index,
    )


def figure(row: Mapping[str, Any], name: str, default: float) -> float:
    """A number of a row, or the default where it has none; BadRow where it is not a finite number."""
    value = row.get(name)
    if value is None or value == "":
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"{name} is {value!r}, expected a number", f"with a wrong {name}")
    return number


class PromptStream:
    """Deals prompts out for ever, each once per epoch, in an order that depends on seed and epoch alone.

    Args:
        prompts: what to deal.
        seed: of this stream's own random numbers.
        per_step: how many `next` gives unless told.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, per_step: int = 1) -> None:
        if not prompts:
            raise DataError("there are no prompts to deal out.")
        self.prompts = list(prompts)
        self.seed = seed
        self.per_step = per_step
        self.epoch = 0
        self.position = 0
        self._order = self._permutation()

    def next(self, n: int | None = None) -> list[Prompt]:
        """The next `n` prompts; an epoch that ends in the middle is followed by the next one."""
        dealt = []
        for _ in range(self.per_step if n is None else n):
            if self.position == len(self._order):
                self.epoch += 1
                self.position = 0
                self._order = self._permutation()
            dealt.append(self.prompts[self._order[self.position]])
            self.position += 1
        return dealt

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands, as JSON values."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "prompts": len(self.prompts),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a state of a stream over the same prompts."""
        if state["prompts"] != len(self.prompts):
            raise DataError(
                f"cannot resume: the dataset had {state['prompts']:,} prompts, now it has "
                f"{len(self.prompts):,}. Restore it."
            )
        self.seed = int(state["seed"])
        self.epoch = int(state["epoch"])
        self.position = int(state["position"])
        self._order = self._permutation()

    def _permutation(self) -> list[int]:
        order = list(range(len(self.prompts)))
        random.Random(f"prompts {self.seed} {self.epoch}").shuffle(order)
        return order
