"""What every stage is given: the recipe, the shared base, the run folder, and one place to say what happens."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch

from ..data import Encoder, hold_out, load_rows
from ..engine import LoraSpec, SharedBase
from ..recipe.schema import DatasetSource, Lora, Recipe, RowStage, StageBase
from ..registry import Registry
from ..runs import RunFolder
from .checkpointing import Checkpointer
from .fingerprints import rows_digest
from .interrupts import Interrupts
from .ranks import Ranks


class Reporter(Protocol):
    """Shows a run to a person; see `progress.py`.

    It may also have a method `rows(what, done, total)`, which is told how far a long pass over rows is (`total` is None
    where it is not known).
    """

    def stage(self, name: str, total: int) -> None:
        """A stage of so many updates begins."""
        ...

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """An update is done."""
        ...

    def rows(self, what: str, done: int, total: int | None) -> None:
        """A long pass over rows goes on; None: it is not known how many there are."""
        ...

    def say(self, text: str) -> None:
        """One line of news."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """`RunView`: a run as observers see it."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]


@dataclass
class Context:
    """One run, as its stages see it."""

    recipe: Recipe
    base: SharedBase
    registry: Registry
    run: RunFolder
    reporter: Reporter
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    ranks: Ranks = field(default_factory=Ranks)
    interrupts: Interrupts = field(default_factory=Interrupts)
    checkpointer: Checkpointer = field(init=False)

    def __post_init__(self) -> None:
        """Checkpoints are announced to the observers."""

        def on_saved(stage: str, step: int | str, folder: Path) -> None:
            self.notify("rlhf_peft_checkpoint_saved", stage=stage, step=step, folder=folder)

        self.checkpointer = Checkpointer(self.run, self.base, on_saved, self.results, self.interrupts)

    @property
    def view(self) -> View:
        """What observers are given."""
        return View(self.run.name, self.run.path, self.recipe.model_dump(mode="json"))

    def seed(self, *stream: str | int) -> int:
        """A seed of its own for each named stream (data, sampling, initialisation), from the recipe's."""
        return stream_seed(self.recipe.seed, *stream)

    def generator(self, *stream: str | int) -> torch.Generator:
        """A generator seeded by `seed`, on the CPU."""
        return torch.Generator().manual_seed(self.seed(*stream))

    def seed_everything(self, *stream: str | int) -> None:
        """Seed the global generators too, for libraries that draw from them."""
        seed = self.seed(*stream)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def rows(self, source: DatasetSource, split: str | None = None, *, stage: str | None = None) -> Any:
        """The rows of a recipe's dataset."""
        return read_source(source, self.registry, split, stage=stage)

    def train_and_held_out(self, stage: StageBase) -> tuple[Any, Any]:
        """The rows of a stage, and those held out for its evaluation (None where the recipe holds out none)."""

        def read(rows: Any) -> None:
            self.checkpointer.note_fingerprint(f"dataset.{stage.name}", rows_digest(rows))

        return split_rows(stage, self.registry, self.recipe.seed, read=read)

    def encoder(self, source: DatasetSource) -> Encoder:
        """Turns rows of that dataset into tokens."""
        model = self.recipe.model
        return Encoder(
            self.base.tokenizer,
            chat_template_kwargs=dict(model.chat_template_kwargs),
            system=source.system,
            max_length=self.base.max_length,
            truncation=source.on_long_row == "cut",
            eos_ids=self.base.eos_ids,
            vocab_size=self.base.vocab_size,
        )

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Write an update's figures down, show them, and tell the observers."""
        if self.checkpointer.replaying:
            return
        self.run.append_metrics(stage, step, metrics)
        self.reporter.step(stage, step, metrics)
        self.notify("rlhf_peft_step_end", stage=stage, step=step, metrics=dict(metrics))

    def notify(self, hook: str, **arguments: Any) -> None:
        """Tell the observers, once for all processes."""
        if self.ranks.main and not self.checkpointer.replaying:
            self.registry.broadcast(hook, run=self.view, **arguments)

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write completions down, with what they scored."""
        if self.checkpointer.replaying:
            return
        self.run.append_samples(rows)

    def save_role(self, stage: str, step: int, role: str) -> None:
        """Write a role's adapter into the run folder and tell the observers."""
        if not self.ranks.main:
            return
        folder = self.run.adapter_dir(role)
        self.base.roles.save(role, folder)
        self.run.wrote_adapter(role)
        self.notify("rlhf_peft_checkpoint_saved", stage=stage, step=step, folder=folder)


def stream_seed(seed: int, *stream: str | int) -> int:
    """A seed of its own for each named stream, from a recipe's."""
    words = "/".join(str(word) for word in stream)
    return (seed * 1_000_003 + zlib.crc32(words.encode())) % 2**31


def split_rows(
    stage: StageBase,
    registry: Registry,
    seed: int,
    *,
    split: str | None = None,
    read: Callable[[Any], None] = lambda rows: None,
) -> tuple[Any, Any]:
    """The rows of a stage, and those held out for its evaluation (None where the recipe holds out none).

    Args:
        stage: part of the recipe.
        registry: makes datasets.
        seed: of the recipe.
        split: of the held-out rows, instead of the recipe's.
        read: is given the rows as they were read.
    """
    name, eval_source, split = stage.name, stage.eval.dataset, split or stage.eval.split
    rows = read_source(stage.dataset, registry, stage=name)
    read(rows)
    rows, held_out = hold_out(rows, stage.dataset.eval_fraction, stream_seed(seed, name, "hold-out"))
    if eval_source is not None or split is not None:
        held_out = read_source(eval_source or stage.dataset, registry, split, stage=name)
    return rows, held_out


def read_source(
    source: DatasetSource, registry: Registry, split: str | None = None, *, stage: str | None = None
) -> Any:
    """The rows of a recipe's dataset: of a file, the hub, or something registered.

    Raises:
        DataError: missing, malformed or empty.
    """
    loader = None if source.path is not None else registry.make("datasets", str(source.name), source.options)
    return load_rows(
        path=source.path,
        name=source.name,
        split=split or source.split,
        columns=source.columns,
        system=source.system,
        on_bad_row=source.on_bad_row,
        loader=loader,
        stage=stage,
    )


def lora_spec(lora: Lora) -> LoraSpec:
    """The engine's form of a recipe's `lora`."""
    targets = lora.target_modules if isinstance(lora.target_modules, str) else tuple(lora.target_modules)
    return LoraSpec(lora.r, lora.alpha, lora.dropout, targets, lora.use_rslora)


StageRunner = Callable[[Any, Context], dict[str, Any]]
"""Runs one stage: its part of the recipe and the context; returns the figures of its end."""


def total_steps(stage: RowStage, rows: int) -> int:
    """Updates of a stage over so many rows."""
    if stage.max_steps is not None:
        return stage.max_steps
    return max(1, int(stage.num_train_epochs * max(1, rows // stage.batch_size)))
