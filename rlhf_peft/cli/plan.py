"""`rlhf-peft plan`: the memory that a recipe needs; only the model's configuration is downloaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Overrides, Plugins, RecipeName, Rewards, Trust, Verbose, open_recipe
from .terminal import make_console

if TYPE_CHECKING:
    from ..planning.forecast import Forecast
    from ..recipe import Recipe
    from ..registry import Registry


def plan(
    context: typer.Context,
    recipe: RecipeName,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="12GB|NAME", help='A size, or a card such as "RTX 4070".'),
    ] = None,
    is_exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="By a dry run on a simulated card: half a minute, and seconds a step too."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, in bytes.")] = False,
    plugin: Plugins = None,
    reward: Rewards = None,
    trust_remote_code: Trust = False,
    verbose: Verbose = False,
) -> None:
    """Memory per role and per phase, whether it fits, and what would make it fit (exit 1: it does not)."""
    loaded, registry = open_recipe(context.obj, recipe, overrides, plugin, reward, quiet=True)
    from ..planning.forecast import forecast
    from ..recipe import check_settings

    check_settings(loaded, registry, here=gpu is None)
    if is_exact:
        _exact(loaded, registry, gpu, plugin or (), as_json=as_json, no_plugins=context.obj.no_plugins)
        return
    result = forecast(loaded, registry, gpu=gpu, trust_remote_code=trust_remote_code)
    if as_json:
        print(json.dumps(as_dict(result), indent=2))
    else:
        show(result)
    if result.plan.verdict == "does not fit":
        raise typer.Exit(1)


def _exact(
    recipe: Recipe,
    registry: Registry,
    gpu: str | None,
    plugins: Sequence[Path],
    *,
    as_json: bool,
    no_plugins: bool,
) -> None:
    """Print the exact plan.

    Raises:
        UsageError: no card is named and there is none here, or a dry run is not possible.
    """
    from ..planning.exact.plan import exact
    from ..planning.gpus import this_gpu
    from . import exact_plan

    result = exact(recipe, registry, gpu or this_gpu(), plugins=plugins, no_plugins=no_plugins)
    if as_json:
        print(json.dumps(exact_plan.as_dict(result), indent=2))
    else:
        exact_plan.show(result)
    if result.verdict == "does not fit":
        raise typer.Exit(1)


def as_dict(forecast: Forecast) -> dict[str, Any]:
    """The forecast as plain data; sizes are in bytes."""
    plan = forecast.plan
    return {
        "parameters": plan.parameters,
        "roles": plan.roles,
        "phases": [
            {"stage": p.stage, "phase": p.name, "items": p.items, "total": p.total} for p in plan.phases
        ],
        "peak": {"stage": plan.peak.stage, "phase": plan.peak.name, "total": plan.peak.total},
        "available": {"name": plan.budget.name, "total": plan.budget.total, "reserve": plan.budget.reserve},
        "verdict": plan.verdict,
        "remedies": [
            {"overrides": list(r.overrides), "saves": r.saves, "fits": r.fits} for r in forecast.remedies
        ],
        "notes": plan.notes,
    }


def show(forecast: Forecast) -> None:
    """Print the tables, the verdict and the overrides that help on stdout."""
    from rich.box import SIMPLE
    from rich.table import Table

    plan, console = forecast.plan, make_console()
    roles = Table("role", "what", "size", box=SIMPLE)
    for role, took in plan.roles.items():
        for what, amount in (took or {"shares the base": 0}).items():
            roles.add_row(role, what, size(amount))
    console.print(f"{plan.parameters / 1e6:,.1f} M parameters", highlight=False)
    console.print(roles)
    phases = Table("stage", "phase", "total", "of which", box=SIMPLE)
    for phase in plan.phases:
        items = sorted(phase.items.items(), key=lambda item: -item[1])
        largest_items = ", ".join(f"{name} {size(amount)}" for name, amount in items)
        phases.add_row(phase.stage, phase.name, size(phase.total), largest_items)
    console.print(phases)
    for line in lines(forecast):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def lines(forecast: Forecast) -> list[str]:
    """Lines of text with the verdict, the overrides that help, and the assumptions."""
    plan = forecast.plan
    budget, peak = plan.budget, plan.peak
    verdict = [
        f"{plan.verdict}: {size(peak.total)} at the peak ({peak.stage}, {peak.name}); {budget.name} has "
        f"{size(budget.total)}, of which {size(budget.reserve)} stay in reserve"
    ]
    for remedy in forecast.remedies:
        enough = "enough" if remedy.fits else "not enough alone"
        if len(remedy.overrides) > 1:
            enough = "together, enough" if remedy.fits else "together, still not enough: take a smaller model"
        verdict.append(f"  {' '.join(remedy.overrides)}  saves {size(remedy.saves)} ({enough})")
    return [*verdict, *(f"note: {note}" for note in plan.notes)]


def size(amount: float) -> str:
    """A number of bytes in MB or GB."""
    return f"{amount / 1024**3:.2f} GB" if amount >= 1024**3 else f"{amount / 1024**2:.1f} MB"
