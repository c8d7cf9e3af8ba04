"""The program's verbs and its global options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from .. import __version__

PROGRAM = "rlhf-peft"

app = typer.Typer(
    name=PROGRAM,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Align an open language model with human feedback on one consumer GPU.",
    epilog="Start with: rlhf-peft run quickstart",
)


@dataclass
class Settings:
    """What the global options say."""

    no_plugins: bool = False
    traceback: bool = False


def _version(asked: bool) -> None:
    if asked:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    no_plugins: Annotated[bool, typer.Option("--no-plugins", help="Leave installed plugins out.")] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the code an error came from.")
    ] = False,
) -> None:
    context.obj.no_plugins, context.obj.traceback = no_plugins, traceback
    if context.invoked_subcommand is None:
        print(context.get_help())


from . import recipes, run, schema, validate  # noqa: E402

app.command("run")(run.run)
app.command("validate")(validate.validate)
app.command("schema")(schema.schema)
app.add_typer(recipes.app, name="recipes")
