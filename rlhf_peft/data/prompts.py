"""Encoded prompts and preference pairs, and the stream that deals prompts out."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DataError
from .calls import offered
from .encode import Encoder
from .examples import notes_of, prompt_of
from .formats import detect
from .rows import BadRows, OnBadRow, OnLongRow, numbered
from .trl_rows import both_answers, encoded

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
    on_long_row: OnLongRow | None = None,
    source: str = "dataset",
    stage: str | None = None,
) -> list[Prompt]:
    """The prompts of a dataset, in its order.

    Args:
        dataset: rows with `prompt`, or with `chosen` and `rejected` that share one.
        encoder: of the model that will answer.
        max_new_tokens: room that an answer needs after its prompt.
        on_bad_row: "error" or "skip", for rows that are empty, of the wrong type or too long.
        on_long_row: the same for rows that are too long; None: as `on_bad_row`.
        source: what messages call the dataset.
        stage: name of the stage, for the override that a message prints.

    Raises:
        DataError: a row is bad, or none is left.
    """
    bad = BadRows(source, on_bad_row, stage, on_long_row=on_long_row)
    prompts = []
    for number, row in numbered(dataset):
        with bad.row(number):
            columns = {**row, "prompt": prompt_of(row, encoder.system)}
            ids = encoder.prompt({"prompt": columns["prompt"], "tools": offered(row)})
            encoder.check_length(ids, "the prompt", max_new_tokens)
            prompts.append(Prompt(torch.tensor(ids, dtype=torch.int64), columns, number - 1))
        bad.note(number, [*notes_of(row), *encoder.take_notes()])
    bad.finish(len(dataset))
    return prompts


def encode_pairs(
    dataset: Dataset,
    encoder: Encoder,
    *,
    on_bad_row: OnBadRow = "error",
    on_long_row: OnLongRow | None = None,
    source: str = "dataset",
    stage: str | None = None,
) -> list[Pair]:
    """The preference pairs of a dataset, in its order.

    Optional columns: `chosen_prob`, the probability that the chosen answer is the better one; `margin`, by how much.

    Args:
        dataset: rows with `chosen` and `rejected`, perhaps `prompt`.
        encoder: of the model that will read them.
        on_bad_row: "error" or "skip", for rows that are empty, of a wrong type, without preference, too long.
        on_long_row: the same for rows that are too long, or "cut"; None: as `on_bad_row`.
        source: what messages call the dataset.
        stage: name of the stage, for the override that a message prints.

    Raises:
        DataError: a row is bad, or none is left.
    """
    format = detect(dataset)
    if format is None or format.kind != "preference":
        raise DataError(f"{source}: preference pairs have the columns chosen and rejected.")
    bad = BadRows(source, on_bad_row, stage, on_long_row=on_long_row)
    return [
        dataclasses.replace(pair, index=number - 1)
        for number, pair in encoded(dataset, format, encoder, as_pair, bad)
    ]


def as_pair(row: Mapping[str, Any], encoder: Encoder) -> Iterator[Pair]:
    """An example of a preference as a Pair, without its number; BadRow if it cannot be used."""
    prompt, chosen, rejected = both_answers(row, encoder)
    yield Pair(
        torch.tensor([*prompt, *chosen], dtype=torch.int64),
        torch.tensor([*prompt, *rejected], dtype=torch.int64),
        row.get("chosen_prob", 1.0),
        row.get("margin", 0.0),
        len(prompt),
    )


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
