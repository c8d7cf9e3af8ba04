"""`rlhf-peft bench`: measure a few steps of a recipe on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json, Overrides, Plugins, RecipeName, Rewards, Trust, Verbose, open_recipe
from .terminal import make_console

if TYPE_CHECKING:
    from ..planning.bench import Bench


def bench(
    context: typer.Context,
    recipe: RecipeName,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps; the first only warms up.")] = 3,
    as_json: Json = False,
    plugin: Plugins = None,
    reward: Rewards = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
    trust_remote_code: Trust = False,
    verbose: Verbose = False,
) -> None:
    """Seconds, tokens a second and memory of rollout, scoring and update; nothing is written."""
    loaded, registry = open_recipe(context.obj, recipe, overrides, plugin, reward, quiet=quiet)
    from ..planning.bench import bench as measure
    from .progress import reporter

    result = measure(
        loaded, registry, reporter(quiet=quiet), steps=steps, trust_remote_code=trust_remote_code
    )
    if as_json:
        print(json.dumps(asdict(result), indent=2))
    else:
        show(result)


def show(result: Bench) -> None:
    """Print the measurements as a table on stdout."""
    from rich.box import SIMPLE
    from rich.table import Table

    from .plan import size

    console = make_console()
    title = f"{result.stage}: {result.seconds:.2f} s a step, median of {max(1, result.steps - 1)}, {result.device}"
    memory = "peak memory" if result.exact else "memory at its end"
    table = Table(
        "phase", "seconds", "tokens/s", "share", memory, box=SIMPLE, title=title, title_justify="left"
    )
    for name, phase in result.phases.items():
        peak = "" if phase.peak is None else size(phase.peak)
        table.add_row(name, f"{phase.seconds:.2f}", f"{phase.tokens:,.0f}", f"{phase.share:.0%}", peak)
    console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
