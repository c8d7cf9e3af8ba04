"""Rows for a trainer of TRL's, and how many of them one forward takes."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..data import Encoder, for_trl, require
from ..data.formats import Method
from ..errors import Problem, RecipeError
from ..recipe.schema import DatasetSource, StageBase
from .context import Context

_PROBED = 32


def rows_for(stage: StageBase, ctx: Context, method: Method) -> tuple[Any, Any]:
    """Rows to train on, and held-out rows or None, as TRL wants them.

    Raises:
        DataError: the dataset is missing, malformed, too long for the model, or has other columns.
    """
    rows, held_out = ctx.train_and_held_out(stage)
    prepared = _prepare(rows, stage.dataset, stage, ctx, method)
    if held_out is None:
        return prepared, None
    order = torch.randperm(len(held_out), generator=ctx.generator(stage.name, "eval")).tolist()
    source = stage.eval.dataset or stage.dataset
    return prepared, _prepare(held_out.select(order[: stage.eval.size]), source, stage, ctx, method)


def _prepare(rows: Any, source: DatasetSource, stage: StageBase, ctx: Context, method: Method) -> Any:
    name = source.path or source.name or "dataset"
    format = require(rows, method, name, stage=stage.name)
    return for_trl(
        rows,
        format,
        unpair=method == "kto",
        encoder=ctx.encoder(source),
        on_bad_row=source.on_bad_row,
        source=name,
        stage=stage.name,
    )


def longest_row(rows: Any, encoder: Encoder) -> int:
    """About how many tokens the longest row has: of the rows with most characters, the most tokens."""
    answers = [
        name for name in ("chosen", "rejected", "completion", "messages", "text") if name in rows.column_names
    ]
    parts = ["prompt", *answers] if "prompt" in rows.column_names else answers
    sizes = [sum(_characters(row[name]) for name in parts) for row in rows.select_columns(parts)]
    order = sorted(range(len(sizes)), key=sizes.__getitem__)[-_PROBED:]
    lengths = []
    for row in rows.select(order):
        both = encoder.pair(row) if "chosen" in row else (encoder.completion(row),)
        lengths += [len(ids) for ids in both]
    longest = max(lengths, default=1)
    return longest if encoder.max_length is None else min(longest, encoder.max_length)


def _characters(value: Any) -> int:
    return (
        len(value) if isinstance(value, str) else sum(len(str(m.get("content") or "")) for m in value or ())
    )


def micro_batch(rows: int, tokens_per_row: int, budget: int, at_least: int = 1) -> int:
    """Rows of one forward: the largest divisor of `rows` whose tokens fit the budget, or `at_least`."""
    fits = [n for n in range(1, rows + 1) if rows % n == 0 and n * tokens_per_row <= budget and n >= at_least]
    smallest = next((n for n in range(at_least, rows + 1) if rows % n == 0), rows)
    return max(fits, default=smallest)


def eval_batch(rows: int, most: int) -> int:
    """Rows of one forward in evaluation, such that the last batch is nearly as large as the others.

    TRL averages its figures over batches, whatever their sizes.
    """
    few = range(min(most, rows), (min(most, rows) + 1) // 2 - 1, -1)
    return max(few, key=lambda size: (rows % size or size) / size)


def processes() -> int:
    """How many processes share the run (DDP)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def rows_a_process(stage: StageBase) -> int:
    """Rows of an update that one process sees.

    Raises:
        RecipeError: the processes cannot share them evenly.
    """
    world = processes()
    if stage.batch_size % world:
        problem = Problem(
            f"stages.{stage.name}.batch_size",
            f"{stage.batch_size} rows cannot be shared evenly by {world} processes",
        )
        raise RecipeError("the recipe", [problem])
    return stage.batch_size // world
