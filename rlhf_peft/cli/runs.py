"""`rlhf-peft runs`: list the runs of an output folder, show one, compare several, and remove one."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RunFolderError, UsageError
from .options import Json, RunName, Yes, confirm, find_run

if TYPE_CHECKING:
    from rich.table import Table

    from ..analysis.compare import Comparison
    from ..runs import History

app = typer.Typer(help="List, show, compare and remove runs.")

Dir = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Folder that holds the runs.")]
MANY = 10
"""The bootstrap interval of a mean can be trusted from this many runs on."""
KNOWN = ("eval/reward", "reward", "eval/accuracy", "eval_loss", "loss")


@app.callback(invoke_without_command=True)
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("list")
def list_(directory: Dir = Path("runs"), as_json: Json = False) -> None:
    """List the runs in a folder, the oldest first."""
    from ..runs import histories
    from .progress import clock

    rows = [_row_or_damage(run) for run in histories(directory)]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print(f"{directory}/ holds no run. Begin one: rlhf-peft run quickstart", file=sys.stderr)
        return
    table = _table("run", "status", "stages", "started", "time", "at the end")
    for row in rows:
        summary = row.get("damage") or "  ".join(
            f"{key} {value:.3g}" for key, value in row["figures"].items()
        )
        table.add_row(
            row["name"],
            row["status"],
            row["stages"],
            row["started"] or "",
            "" if row["seconds"] is None else clock(row["seconds"]),
            summary,
        )
    _print(table)


def _row_or_damage(run: History) -> dict[str, Any]:
    """The row of a run; one that cannot be read gets a row too, with `damage` in it."""
    try:
        return _row(run)
    except RunFolderError as error:
        empty: dict[str, Any] = {"stages": "", "started": None, "seconds": None, "figures": {}}
        return {"name": run.name, "path": str(run.path), "status": "damaged", **empty, "damage": str(error)}


def _row(run: History) -> dict[str, Any]:
    started = run.started
    finished, kinds = run.manifest.get("stages_done", []), run.kinds
    begun_stages = [name for name in kinds if run.lines(name)]
    last = run.last(begun_stages[-1]) if begun_stages else {}
    metrics = {key: last[key] for key in KNOWN if key in last}
    return {
        "name": run.name,
        "path": str(run.path),
        "status": run.status,
        "stages": f"{len(finished)} of {len(kinds)}",
        "started": datetime.fromtimestamp(started).strftime("%Y-%m-%d %H:%M")
        if started is not None
        else None,
        "seconds": run.seconds,
        "figures": dict(list(metrics.items())[:2]),
    }


@app.command()
def show(run: RunName = None, as_json: Json = False) -> None:
    """Show one run: its stages and the last metrics of each."""
    from ..runs import History
    from .progress import clock

    history = History.of(find_run(run))
    metrics = {name: history.last(name) for name in history.kinds}
    if as_json:
        stages = {name: {"kind": kind, "figures": metrics[name]} for name, kind in history.kinds.items()}
        print(json.dumps({**_row(history), "stages": stages, "manifest": dict(history.manifest)}, indent=2))
        return
    row = _row(history)
    took = "no time known" if history.seconds is None else clock(history.seconds)
    print(f"{history.name}: {history.status}, {row['stages']} stages, {took}, in {history.path}")
    table = _table("stage", "metric", "last value")
    for name, values in metrics.items():
        for key, value in values.items():
            table.add_row(name, key, f"{value:.4g}")
    _print(table)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names under runs/, or paths.")],
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="K", help="Key of the recipe that groups runs; seeds fall together."),
    ] = None,
    axis: Annotated[str, typer.Option("--x", help="steps, tokens, seconds or kl.")] = "steps",
    figure: Annotated[str | None, typer.Option("--y", metavar="METRIC", help="Of metrics.jsonl.")] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="Default: the last that all have.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="F", help="Write the curves there.")] = None,
    pdf: Annotated[Path | None, typer.Option("--pdf", metavar="F", help="Draw them there.")] = None,
    as_json: Json = False,
) -> None:
    """Compare runs: means over seeds with 95 % intervals, and every other key in which their recipes differ."""
    from ..analysis.compare import as_csv
    from ..analysis.compare import compare as compare_runs
    from ..analysis.curves import AXES
    from ..atomic import write_output
    from ..runs import History

    if axis not in AXES:
        raise UsageError(f"--x {axis}: expected {', '.join(AXES)}.")
    comparison = compare_runs(
        [History.of(find_run(name)) for name in runs],
        by=by,
        axis=axis,  # type: ignore[arg-type]
        metric=figure,
        stage=stage,
    )
    if as_json:
        print(json.dumps(_plain(comparison), indent=2))
    else:
        _show(comparison)
    if csv is not None:
        write_output(csv, as_csv(comparison))
        print(f"written: {csv}", file=sys.stderr)
    if pdf is not None:
        from ..analysis.plots import draw_comparison

        draw_comparison(comparison, pdf)
        print(f"written: {pdf}", file=sys.stderr)


def _plain(comparison: Comparison) -> dict[str, Any]:
    groups = [
        {
            "label": group.label,
            "runs": [run.name for run in group.runs],
            "x": group.band.x,
            "mean": group.band.mean,
            "low": group.band.low,
            "high": group.band.high,
        }
        for group in comparison.groups
    ]
    return {
        "stage": comparison.stage,
        "figure": comparison.metric,
        "axis": comparison.axis,
        "by": comparison.by,
        "groups": groups,
        "differing": comparison.differing,
    }


def _show(comparison: Comparison) -> None:
    table = _table(
        comparison.by or "run",
        "runs",
        comparison.axis,
        f"{comparison.metric} in {comparison.stage}",
        "95 % interval",
    )
    for group in comparison.groups:
        end = group.band
        interval = f"{end.low[-1]:.4g} to {end.high[-1]:.4g}" if end.runs > 1 else ""
        table.add_row(group.label, str(end.runs), f"{end.x[-1]:,.6g}", f"{end.mean[-1]:.4g}", interval)
    _print(table)
    fewest = min((group.band.runs for group in comparison.groups if group.band.runs > 1), default=MANY)
    if fewest < MANY:
        print(
            f"note: a bootstrap over {fewest} runs is too narrow; it covers the true mean less often than 95 %"
        )
    for key, values in comparison.differing.items():
        print(f"they also differ in {key}: {', '.join(json.dumps(value) for value in values)}")


@app.command()
def rm(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A name under runs/, or a path.")],
    yes: Yes = False,
) -> None:
    """Remove a run: what it has made. Files of yours in its folder stay."""
    from ..runs import remove_run

    folder = find_run(run)
    print(f"{folder}: {sum(1 for _ in folder.rglob('*'))} files and folders")
    confirm("Remove it?", yes)
    remove_run(folder)


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    return Table(*columns, box=SIMPLE)


def _print(table: Table) -> None:
    from .terminal import make_console

    make_console().print(table)
