"""Encoded prompts and preference pairs, and the stream that delivers prompts in a shuffled order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from ..errors import DataError
from .calls import tools_in_row
from .encode import Encoder
from .encoded import SOURCE_INDEX, Columns, encode_dataset, ids_and_row
from .examples import example, prompt_of
from .formats import detect
from .rows import ROW, BadRows, OnBadRow, OnLongRow, numbered
from .tokens import Steps
from .trl_rows import both_answers

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True)
class Prompt:
    """One encoded prompt.

    Attributes:
        ids: [P] int64.
        columns: the dataset's row; `prompt` includes its system message.
        index: number of the row in its file, counted from 0.
    """

    ids: Tensor
    columns: dict[str, Any]
    index: int


@dataclass(frozen=True, slots=True)
class Pair:
    """One encoded preference pair.

    Attributes:
        chosen_ids: [T] int64: prompt, answer and end.
        rejected_ids: [T'] int64: the same for the rejected answer.
        label: probability that the chosen answer is the better one.
        margin: difference of the answers' rewards; 0 if the dataset has none.
        prompt_length: number of leading tokens that are the shared prompt.
        index: number of the row in its file, counted from 0.
    """

    chosen_ids: Tensor
    rejected_ids: Tensor
    label: float = 1.0
    margin: float = 0.0
    prompt_length: int = 0
    index: int = 0


class Prompts(Sequence[Prompt]):
    """A sequence of prompts that are read from the disk on access.

    Args:
        encoded: a dataset with `prompt_ids`, the number of the row in its file, and its `place` (index) in `rows`.
        rows: the dataset that they were encoded from.
        system: system message that was put before conversations that had none.
    """

    def __init__(self, encoded: Dataset, rows: Dataset, system: str | None) -> None:
        self._encoded, self._rows, self._system = encoded, rows, system

    def __len__(self) -> int:
        return len(self._encoded)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        """One prompt, or a list of several."""
        return _get(self._read, len(self), index)

    def __iter__(self) -> Iterator[Prompt]:
        return _iterate(self._read, len(self))

    def _read(self, indices: Sequence[int]) -> list[Prompt]:
        batch = self._encoded[indices]
        rows = (row for _, row in numbered(self._rows.select(batch[SOURCE_INDEX])))
        return [
            Prompt(
                torch.tensor(ids, dtype=torch.int64),
                {**row, "prompt": prompt_of(row, self._system)},
                number - 1,
            )
            for ids, number, row in zip(batch["prompt_ids"], batch[ROW], rows, strict=True)
        ]


class Pairs(Sequence[Pair]):
    """A sequence of preference pairs that are read from the disk on access.

    Args:
        encoded: a dataset with `prompt_ids`, `chosen_ids`, `rejected_ids`, `label`, `margin` and the number of the
            row in its file.
    """

    def __init__(self, encoded: Dataset) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    @overload
    def __getitem__(self, index: int) -> Pair: ...

    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...

    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        """One pair, or a list of several."""
        return _get(self._read, len(self), index)

    def __iter__(self) -> Iterator[Pair]:
        return _iterate(self._read, len(self))

    def _read(self, indices: Sequence[int]) -> list[Pair]:
        batch = self._encoded[indices]
        names = ("prompt_ids", "chosen_ids", "rejected_ids", "label", "margin", ROW)
        return [
            Pair(
                torch.tensor(prompt + chosen, dtype=torch.int64),
                torch.tensor(prompt + rejected, dtype=torch.int64),
                label,
                margin,
                len(prompt),
                number - 1,
            )
            for prompt, chosen, rejected, label, margin, number in zip(
                *(batch[name] for name in names), strict=True
            )
        ]


READ = 256
"""Number of prompts or pairs that are read at once during iteration."""


def _get(read: Any, size: int, index: int | slice) -> Any:
    """One item of a sequence, or a list of items for a slice."""
    if isinstance(index, slice):
        return [item for part in _chunks(range(size)[index]) for item in read(part)]
    (item,) = read([range(size)[index]])
    return item


def _iterate(read: Any, size: int) -> Iterator[Any]:
    """Iterate over all items, in chunks of `READ`."""
    return (item for part in _chunks(range(size)) for item in read(part))


def _chunks(indices: range) -> Iterator[list[int]]:
    """Cut a range of indices into chunks of `READ`."""
    return (list(indices[first : first + READ]) for first in range(0, len(indices), READ))


def encode_prompts(
    dataset: Dataset,
    encoder: Encoder,
    *,
    max_new_tokens: int = 0,
    on_bad_row: OnBadRow = "error",
    on_long_row: OnLongRow | None = None,
    source: str = "dataset",
    stage: str | None = None,
) -> Prompts:
    """Encode the prompts of a dataset, in its order.

    Args:
        dataset: rows with `prompt`, or with `chosen` and `rejected` that share one.
        encoder: encoder of the model that will answer.
        max_new_tokens: number of tokens that must fit after a prompt.
        on_bad_row: "error" or "skip", for rows that are empty, of the wrong type or too long.
        on_long_row: the same for rows that are too long; None: as `on_bad_row`.
        source: name of the dataset in messages.
        stage: name of the stage, for the override that a message prints.

    Raises:
        DataError: a row is bad, or none is left.
    """
    bad = BadRows(source, on_bad_row, stage, on_long_row=on_long_row)

    def start(row: Mapping[str, Any]) -> Steps[list[Columns]]:
        prompt = prompt_of(row, encoder.system)
        ids = yield from encoder.prompt_steps({"prompt": prompt, "tools": tools_in_row(row)})
        encoder.check_length(ids, "the prompt", max_new_tokens)
        return [{"prompt_ids": ids}]

    features = ids_and_row("prompt_ids", **{SOURCE_INDEX: "int64"})
    settings = {"max_new_tokens": max_new_tokens}
    encoded = encode_dataset(dataset, encoder, start, features, bad, what="prompts", settings=settings)
    return Prompts(encoded, dataset, encoder.system)


def encode_pairs(
    dataset: Dataset,
    encoder: Encoder,
    *,
    on_bad_row: OnBadRow = "error",
    on_long_row: OnLongRow | None = None,
    source: str = "dataset",
    stage: str | None = None,
) -> Pairs:
    """Encode the preference pairs of a dataset, in its order.

    Optional columns are `chosen_prob`, the probability that the chosen answer is the better one, and `margin`, the
    difference of the answers' rewards.

    Args:
        dataset: rows with `chosen` and `rejected`, perhaps `prompt`.
        encoder: encoder of the model that will read them.
        on_bad_row: "error" or "skip", for rows that are empty, of a wrong type, without preference, or too long.
        on_long_row: the same for rows that are too long, or "cut"; None: as `on_bad_row`.
        source: name of the dataset in messages.
        stage: name of the stage, for the override that a message prints.

    Raises:
        DataError: a row is bad, or none is left.
    """
    format = detect(dataset)
    if format is None or format.kind != "preference":
        raise DataError(f"{source}: preference pairs have the columns chosen and rejected.")
    bad = BadRows(source, on_bad_row, stage, on_long_row=on_long_row)

    def start(row: Mapping[str, Any]) -> Steps[list[Columns]]:
        encoded = example(row, format, system=encoder.system)
        prompt, chosen, rejected = yield from both_answers(encoded, encoder)
        label, margin = encoded.get("chosen_prob", 1.0), encoded.get("margin", 0.0)
        ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        return [{**ids, "label": label, "margin": margin}]

    features = ids_and_row("prompt_ids", "chosen_ids", "rejected_ids", label="float64", margin="float64")
    settings = {"format": [format.kind, format.columns, format.conversational]}
    encoded = encode_dataset(dataset, encoder, start, features, bad, what="pairs", settings=settings)
    return Pairs(encoded)


class PromptStream:
    """Delivers prompts without end, each once per epoch, in an order that depends only on seed and epoch.

    Args:
        prompts: the prompts to deliver.
        seed: seed of this stream's own random numbers.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise DataError("there are no prompts to deal out.")
        self.prompts = prompts
        self.seed = seed
        self.epoch = 0
        self.position = 0
        self._order = self._permutation()

    def next(self, n: int) -> list[Prompt]:
        """Return the next `n` prompts; where an epoch ends, the next one begins."""
        indices = []
        for _ in range(n):
            if self.position == len(self._order):
                self.epoch += 1
                self.position = 0
                self._order = self._permutation()
            indices.append(self._order[self.position])
            self.position += 1
        return [self.prompts[index] for index in indices]

    def state_dict(self) -> dict[str, int]:
        """The position of the stream, as JSON values."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "prompts": len(self.prompts),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from the state of a stream over the same prompts.

        Raises:
            DataError: the number of prompts has changed.
        """
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
