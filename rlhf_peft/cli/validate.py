"""`rlhf-peft validate`: the recipe as resolved, or all that is wrong with it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .options import Overrides, Plugins, RecipeName, Rewards, Verbose, open_recipe


def validate(
    context: typer.Context,
    recipe: RecipeName,
    overrides: Overrides = None,
    data: Annotated[
        bool, typer.Option("--data", help="Read every dataset too, and say where 4 bits are not needed.")
    ] = False,
    plugin: Plugins = None,
    reward: Rewards = None,
    verbose: Verbose = False,
) -> None:
    """Check a recipe and print it with every default, without loading a model."""
    loaded, registry = open_recipe(context.obj, recipe, overrides, plugin, reward)
    from ..recipe import check_settings, dump

    check_settings(loaded, registry)

    if data:
        from .. import api
        from ..planning.forecast import precision_notes
        from .progress import row_progress

        with row_progress():
            lines = [*api.check_data(loaded, registry=registry), *precision_notes(loaded, registry)]
        for line in lines:
            print(line, file=sys.stderr)
    print(dump(loaded), end="")
