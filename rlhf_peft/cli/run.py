"""`rlhf-peft run`: everything that a recipe says."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Overrides, Plugins, RecipeName, Rewards, add_rewards, open_recipe, open_registry


def run(
    context: typer.Context,
    recipe: RecipeName,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run of that name.")
    ] = False,
    plugin: Plugins = None,
    reward: Rewards = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", metavar="K=a,b", help="Run every value; several make a grid of runs."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="No progress; warnings and the result only.")
    ] = False,
    strict_plugins: Annotated[
        bool, typer.Option("--strict-plugins", help="An observer that raises ends the run.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a model's repository brings.")
    ] = False,
) -> None:
    """Train what the recipe says; the result goes to <output_dir>/<name>/."""
    if sweep:
        from .sweep import run_sweep

        registry = open_registry(context.obj, plugin, strict=strict_plugins, quiet=quiet)
        run_sweep(
            recipe,
            overrides or (),
            sweep,
            registry,
            add_rewards(registry, reward),
            overwrite=overwrite,
            quiet=quiet,
            trust_remote_code=trust_remote_code,
        )
        return
    loaded, registry = open_recipe(
        context.obj, recipe, overrides, plugin, reward, strict=strict_plugins, quiet=quiet
    )
    from .. import api
    from ..stages import Ranks
    from .progress import reporter
    from .summary import show

    result = api.run(
        loaded,
        registry=registry,
        overwrite=overwrite,
        reporter=reporter(quiet=quiet),
        code_files=registry.code_files,
        trust_remote_code=trust_remote_code,
    )
    if Ranks().main:
        show(result, loaded)
