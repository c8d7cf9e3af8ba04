"""Rows for a trainer of TRL's, and how many of them one forward takes."""

from __future__ import annotations

import os
from typing import Any

import pyarrow.compute as pc
import torch

from ..data import for_trl, require
from ..data.formats import Method
from ..errors import Problem, RecipeError
from ..recipe.schema import DatasetSource, RowStage, StageBase
from ..session.context import Context


def rows_for(stage: StageBase, ctx: Context, method: Method, **how: Any) -> tuple[Any, Any]:
    """Rows to train on, and held-out rows or None, as token ids.

    Args:
        stage: part of the recipe.
        ctx: the run.
        method: what is trained.
        how: options of `for_trl`.

    Raises:
        DataError: the dataset is missing, malformed, too long for the model, or has other columns.
    """
    rows, held_out = ctx.train_and_held_out(stage)
    prepared = _prepare(rows, stage.dataset, stage, ctx, method, **how)
    if held_out is None:
        return prepared, None
    source = stage.eval.dataset or stage.dataset
    held_out_rows = _prepare(held_out, source, stage, ctx, method, warn=stage.eval.dataset is not None, **how)
    order = torch.randperm(len(held_out_rows), generator=ctx.generator(stage.name, "eval")).tolist()
    return prepared, held_out_rows.select(order[: stage.eval.size])


def _prepare(
    rows: Any,
    source: DatasetSource,
    stage: StageBase,
    ctx: Context,
    method: Method,
    warn: bool = True,
    **how: Any,
) -> Any:
    name = source.path or source.name or "dataset"
    format = require(rows, method, name, stage=stage.name, warn=warn)
    return for_trl(
        rows,
        format,
        ctx.encoder(source),
        unpair=method == "kto",
        on_bad_row=source.on_bad_row,
        on_long_row=source.on_long_row,
        source=name,
        stage=stage.name,
        **how,
    )


def longest_row(rows: Any) -> int:
    """Tokens of the longest row that a forward reads, of rows as `for_trl` makes them."""
    answers = ("input_ids", "chosen_ids", "rejected_ids", "completion_ids")
    names = [name for name in ("prompt_ids", *answers) if name in rows.column_names]
    longest = 1
    for table in rows.select_columns(names).with_format("arrow").iter(10_000):
        lengths = {name: pc.list_value_length(table[name]) for name in names}
        prompts = lengths.pop("prompt_ids", 0)
        longest = max(longest, *(pc.max(pc.add(prompts, length)).as_py() for length in lengths.values()))
    return longest


def micro_batch(rows: int, tokens_per_row: int, budget: int, at_least: int = 1) -> int:
    """Rows of one forward: the largest divisor of `rows` whose tokens fit the budget, or `at_least`."""
    fits = [n for n in range(1, rows + 1) if rows % n == 0 and n * tokens_per_row <= budget and n >= at_least]
    smallest = next((n for n in range(at_least, rows + 1) if rows % n == 0), rows)
    return max(fits, default=smallest)


def eval_batch(rows: int, most: int) -> int:
    """Rows of one forward in evaluation, such that the last batch is nearly as large as the others.

    TRL averages its metrics over batches, whatever their sizes.
    """
    few = range(min(most, rows), (min(most, rows) + 1) // 2 - 1, -1)
    return max(few, key=lambda size: (rows % size or size) / size)


def processes() -> int:
    """How many processes share the run (DDP)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def rows_a_process(stage: RowStage) -> int:
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
