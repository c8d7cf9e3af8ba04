"""The program's commands and its global options."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import (
    bench,
    cache,
    chat,
    data,
    doctor,
    eval,
    export,
    label,
    plan,
    plugins,
    recipes,
    report,
    run,
    runs,
    schema,
    validate,
    verify,
)
from .commands import PluginGroup
from .options import Verbose

PROGRAM = "rlhf-peft"

app = typer.Typer(
    name=PROGRAM,
    cls=PluginGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Align an open language model with human feedback on one consumer GPU.",
    epilog="Start with: rlhf-peft run quickstart",
)


def _set_no_plugins(context: typer.Context, no_plugins: bool) -> bool:
    """Store `--no-plugins` before other options are read, so that `--help` lists no plugin's command."""
    context.obj.no_plugins = no_plugins
    return no_plugins


def _print_version(requested: bool) -> None:
    if requested:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    no_plugins: Annotated[
        bool,
        typer.Option(
            "--no-plugins", callback=_set_no_plugins, is_eager=True, help="Leave installed plugins out."
        ),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the code an error came from.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    context.obj.no_plugins, context.obj.traceback = no_plugins, traceback
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command("run")(run.run)
app.command("validate")(validate.validate)
app.command("plan")(plan.plan)
app.command("bench")(bench.bench)
app.command("data")(data.data)
app.add_typer(runs.app, name="runs")
app.add_typer(cache.app, name="cache")
app.command("report")(report.report)
app.command("eval")(eval.evaluate)
app.command("chat")(chat.chat)
app.command("label")(label.label)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("doctor")(doctor.doctor)
app.command("schema")(schema.schema)
app.add_typer(recipes.app, name="recipes")
app.add_typer(plugins.app, name="plugins")
