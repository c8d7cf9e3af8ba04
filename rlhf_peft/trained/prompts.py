"""Prompts for a trained run: those that its last RL stage held out or trained on, or those of another dataset."""

from __future__ import annotations

import logging
import random

from ..data import Encoder, Prompt, encode_prompts, require
from ..errors import UsageError
from ..recipe import DatasetSource, Recipe, RlStage
from ..registry import Registry
from ..stages import read_source, split_rows
from .opened import Opened

log = logging.getLogger("rlhf_peft")


def last_rl(recipe: Recipe) -> RlStage | None:
    """The last RL stage of a run's recipe; None: it has none."""
    return next((stage for stage in reversed(recipe.stages) if isinstance(stage, RlStage)), None)


def prompts_of(
    opened: Opened,
    registry: Registry,
    *,
    what: str,
    dataset: DatasetSource | None = None,
    split: str | None = None,
    held_out: bool = True,
    size: int = 256,
    max_new_tokens: int = 1,
    shuffle: int | None = None,
) -> list[Prompt]:
    """Encode prompts for a run.

    Args:
        opened: the run.
        registry: makes datasets.
        what: what the prompts are for, in messages.
        dataset: that the prompts are read from; None: the dataset of the last RL stage.
        split: of the dataset.
        held_out: take the rows that the stage does not train on, where it holds any out; otherwise those that it does.
        size: most prompts.
        max_new_tokens: of an answer, for which room is left.
        shuffle: seed of the order; None: the order of the rows.

    Raises:
        UsageError: the run has no RL stage, and no dataset is given.
        DataError: rows cannot be used.
    """
    stage = last_rl(opened.recipe)
    if dataset is not None:
        source, rows = dataset, read_source(dataset, registry, split, stage=what)
    elif stage is None:
        raise UsageError(f"{opened.path}: has no RL stage that names prompts. Name a dataset.")
    else:
        trained, held_out_rows = split_rows(stage, registry, opened.recipe.seed, split=split)
        use_held_out = held_out and held_out_rows is not None
        if held_out and not use_held_out:
            log.warning("%s: its RL stage holds out no rows, so these prompts were trained on.", opened.path)
        rows = held_out_rows if use_held_out else trained
        source = stage.eval.dataset if use_held_out and stage.eval.dataset is not None else stage.dataset
    name = source.path or str(source.name)
    require(rows, "rl", name, stage=what)
    encoder = Encoder(
        opened.base.tokenizer,
        chat_template_kwargs=dict(opened.recipe.model.chat_template_kwargs),
        system=source.system if source.system is not None or stage is None else stage.dataset.system,
        max_length=opened.base.max_length,
        eos_ids=opened.base.eos_ids,
        vocab_size=opened.base.vocab_size,
    )
    prompts = encode_prompts(
        rows, encoder, max_new_tokens=max_new_tokens, on_bad_row=source.on_bad_row, source=name, stage=what
    )
    order = list(range(len(prompts)))
    if shuffle is not None:
        random.Random(shuffle).shuffle(order)
    return [prompts[place] for place in order[:size]]
