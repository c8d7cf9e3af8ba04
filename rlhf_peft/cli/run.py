"""`rlhf-peft run`: everything that a recipe says."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from ..errors import UsageError
from .options import (
    Overrides,
    Plugins,
    RecipeName,
    Rewards,
    Trust,
    Verbose,
    add_rewards,
    open_recipe,
    open_registry,
)


def run(
    context: typer.Context,
    recipe: RecipeName,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run of that name.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run of that name; begin it where there is none."),
    ] = False,
    resume_from: Annotated[
        str | None,
        typer.Option("--resume-from", metavar="NAME", help="Go on from this checkpoint of the run."),
    ] = None,
    allow_changed: Annotated[
        str | None,
        typer.Option(
            "--allow-changed",
            metavar="A,B",
            help="What may differ from the run that is resumed, or from the base of what is loaded.",
        ),
    ] = None,
    plugin: Plugins = None,
    reward: Rewards = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", metavar="K=a,b", help="Run every value; several make a grid of runs."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="No progress; warnings and the result only.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The result as JSON, and progress as JSON lines on stderr.")
    ] = False,
    strict_plugins: Annotated[
        bool, typer.Option("--strict-plugins", help="An observer that raises ends the run.")
    ] = False,
    trust_remote_code: Trust = False,
    verbose: Verbose = False,
) -> None:
    """Train what the recipe says; the result goes to <output_dir>/<name>/."""
    if overwrite and (resume or resume_from):
        raise UsageError("--overwrite and --resume contradict each other: give one.")
    if sweep and (resume or resume_from):
        raise UsageError("--resume does not go with --sweep. Resume the runs of a sweep one by one.")
    if sweep and as_json:
        raise UsageError("--json does not go with --sweep. A sweep writes its results to <name>-sweep.json.")
    if sweep and allow_changed:
        raise UsageError("--allow-changed does not go with --sweep. Run the cell that needs it by itself.")
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
        context.obj, recipe, overrides, plugin, reward, strict=strict_plugins, quiet=quiet, as_json=as_json
    )
    from .. import api
    from ..runs import plain
    from ..stages import Ranks
    from .progress import reporter
    from .summary import show

    result = api.run(
        loaded,
        registry=registry,
        overwrite=overwrite,
        reporter=reporter(quiet=quiet, as_json=as_json),
        code_files=registry.code_files,
        trust_remote_code=trust_remote_code,
        resume=resume,
        resume_from=resume_from,
        allow_changed=tuple(filter(None, (allow_changed or "").split(","))),
    )
    if Ranks().main and as_json:
        print(json.dumps(plain({**asdict(result), "name": loaded.name}), indent=2, ensure_ascii=False))
    elif Ranks().main:
        show(result, loaded)
