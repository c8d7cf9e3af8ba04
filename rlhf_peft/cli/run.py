"""`rlhf-peft run`: train what a recipe describes."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from ..api import Result
    from ..recipe import Recipe


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
    _check_options(bool(sweep), overwrite, resume or bool(resume_from), as_json, bool(allow_changed))
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
    from .progress import reporter

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
    _print_result(result, loaded, as_json)


def _check_options(sweep: bool, overwrite: bool, resume: bool, as_json: bool, allow_changed: bool) -> None:
    """Refuse options that contradict each other; each argument says whether its option is given.

    Raises:
        UsageError: two of the options cannot be used together.
    """
    if overwrite and resume:
        raise UsageError("--overwrite and --resume contradict each other: give one.")
    if sweep and resume:
        raise UsageError("--resume does not go with --sweep. Resume the runs of a sweep one by one.")
    if sweep and as_json:
        raise UsageError("--json does not go with --sweep. A sweep writes its results to <name>-sweep.json.")
    if sweep and allow_changed:
        raise UsageError("--allow-changed does not go with --sweep. Run the cell that needs it by itself.")


def _print_result(result: Result, recipe: Recipe, as_json: bool) -> None:
    """Print the result of a run, as JSON or as tables; of several processes only the main one prints."""
    from ..runs import plain
    from ..stages import Ranks
    from .summary import show

    if not Ranks().main:
        return
    if as_json:
        print(json.dumps(plain({**asdict(result), "name": recipe.name}), indent=2, ensure_ascii=False))
    else:
        show(result, recipe)
