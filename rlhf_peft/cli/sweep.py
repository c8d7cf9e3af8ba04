"""`rlhf-peft run --sweep`: run a grid of recipes, and print a table of the results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RlhfPeftError
from ..runs.headlines import headline
from .terminal import make_console

if TYPE_CHECKING:
    from ..registry import Registry
    from ..sweep.run import Outcome


COLUMNS = 3
"""Number of metrics in the table; the sweep's JSON file has all."""


def run_sweep(
    recipe: str,
    overrides: Sequence[str],
    axes: Sequence[str],
    registry: Registry,
    rewards: Sequence[str],
    *,
    overwrite: bool,
    quiet: bool,
    trust_remote_code: bool,
) -> None:
    """Check every cell, run those that are not done, and print the table.

    Raises:
        UsageError: a cell is wrong; nothing was run.
        RlhfPeftError: cells failed; the others are done.
    """
    from ..recipe import load
    from ..sweep.grid import make_cells, parse_axis

    cells = make_cells(
        recipe, overrides, [parse_axis(axis) for axis in axes], plugins=registry, rewards=rewards
    )
    name = load(recipe, overrides).name

    from ..sweep.run import sweep
    from .progress import reporter

    outcomes = sweep(
        name,
        cells,
        overwrite=overwrite,
        report=lambda text: None if quiet else print(text, file=sys.stderr, flush=True),
        registry=registry,
        reporter=lambda: reporter(quiet=quiet),
        code_files=registry.code_files,
        trust_remote_code=trust_remote_code,
    )
    show(name, outcomes, Path(cells[0].recipe.output_dir) / f"{name}-sweep.json")
    failed = [outcome.name for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise RlhfPeftError(
            f"{len(failed)} of {len(outcomes)} cells failed: {', '.join(failed)}. The same command runs them again, "
            "and only them."
        )


def show(name: str, outcomes: Sequence[Outcome], file: Path, console: Any = None) -> None:
    """Print a table with one row for each cell: its values, its metrics, and how long it took."""
    from rich.box import SIMPLE
    from rich.table import Table

    console = console or make_console()
    metrics = list(dict.fromkeys(key for outcome in outcomes for key in outcome.metrics))[:COLUMNS]
    table = Table(box=SIMPLE, title=f"{name}: {len(outcomes)} cells", title_justify="left")
    table.add_column("cell", overflow="fold", min_width=20)
    table.add_column("status")
    for column in (*(_heading(key) for key in metrics), "seconds"):
        table.add_column(column.replace(" ", "\n"), justify="right", min_width=7)
    for outcome in outcomes:
        shown = [f"{outcome.metrics[key]:.3f}" if key in outcome.metrics else "" for key in metrics]
        table.add_row(outcome.name.removeprefix(f"{name}-"), outcome.status, *shown, f"{outcome.seconds:.0f}")
    console.print(table)
    console.print(f"next: all metrics:  cat {file}", markup=False, highlight=False, soft_wrap=True)


def _heading(key: str) -> str:
    """The heading of a metric's column; for a single reward, its name on held-out prompts."""
    known = headline(key)
    return known.label if known else f"held-out {key.removesuffix('/mean').removeprefix('eval/rewards/')}"
