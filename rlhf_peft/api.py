"""The Python API: the functions behind the command line.

    import rlhf_peft
    recipe = rlhf_peft.load_recipe("quickstart", ["seed=3"])
    result = rlhf_peft.run(recipe)
    print(result.folder, result.stages["rl"]["after"])

Errors are those of `rlhf_peft.errors`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import ModelError
from .execution.prepare import check_data, check_samplers, check_tracking, load_base, sampler_ready
from .execution.resume import find_resume_point, is_finished, refuse_changes
from .execution.run import NullReporter, Result, Run
from .recipe import Recipe, check_settings, load
from .registry import Registry
from .runs import Check, Checkpoints, other_versions, read_manifest, verify_files
from .stages import Ranks, Reporter

__all__ = [
    "Result",
    "check_data",
    "check_samplers",
    "load_base",
    "load_recipe",
    "run",
    "sampler_ready",
    "verify",
]


def load_recipe(
    source: str | Path, overrides: Sequence[str] = (), *, registry: Registry | None = None
) -> Recipe:
    """Load and validate a recipe from a path, or by the name of a shipped one, with `K=V` overrides.

    Raises:
        RecipeError: the recipe has problems; the error lists all of them.
    """
    registry = registry or Registry.load()
    return load(source, overrides, plugins=registry)


def run(
    recipe: Recipe,
    *,
    registry: Registry | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    code_files: Sequence[Path] = (),
    trust_remote_code: bool = False,
    begun_by: Path | None = None,
    resume: bool = False,
    resume_from: str | None = None,
    allow_changed: Collection[str] = (),
) -> Result:
    """Run all stages of a recipe.

    An interruption or an error leaves a checkpoint of the last update. With `resume` the run goes on from there, and
    ends with exactly the files that it would have had without the interruption.

    Args:
        recipe: from `load_recipe`.
        registry: with the plugins; default: built-ins and installed ones.
        overwrite: replace a run of the same name.
        reporter: shows the progress; default: nothing is shown.
        code_files: plugin and reward files, copied into the run folder.
        trust_remote_code: run code from the model's repository.
        begun_by: a finished run of the recipe's first stages, whose results are used instead of running them again.
        resume: go on with a run of that name; begin one where there is none, and do nothing where it is finished.
        resume_from: name of the checkpoint to go on from; default: the newest complete one.
        allow_changed: what may differ from the run that is resumed, or from the base of adapters that are loaded, by
            the names that the error message gives.

    Raises:
        UsageError: the recipe, the data, the model or the folder cannot be used; nothing was trained.
        RlhfPeftError: the run failed or was stopped by a guard.
    """
    files = [Path(os.path.abspath(file)) for file in code_files]
    registry = registry or Registry.load()
    check_tracking(recipe)
    check_settings(recipe, registry)
    if resume and resume_from is None and is_finished(recipe.run_folder):
        refuse_changes(recipe, code_files)
        return Result(recipe.run_folder, _results(recipe.run_folder))
    ranks = Ranks()
    return Run(
        recipe,
        registry,
        reporter if reporter is not None and ranks.main else NullReporter(),
        files=files,
        trust_remote_code=trust_remote_code,
        allow_changed=allow_changed,
        overwrite=overwrite or resume,
        resume_point=find_resume_point(recipe, resume_from, allow_changed) if resume or resume_from else None,
        begun_by=begun_by,
        ranks=ranks,
    ).execute()


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    """What the stages of a run returned, as its newest checkpoint has it."""
    checkpoint, _ = Checkpoints(folder).newest()
    return {} if checkpoint is None else dict(checkpoint.info["results"])


def verify(
    run: Path, *, trust_remote_code: bool = False, registry: Registry | None = None
) -> Iterator[Check]:
    """Check every hash of a run, and load every adapter and head on its base.

    Args:
        run: the run's folder.
        trust_remote_code: run code from the model's repository.
        registry: makes the quantizer; None: with all installed plugins.

    Raises:
        UsageError: it is no run folder, or its recipe or base cannot be read.
    """
    yield from verify_files(run)
    if others := other_versions(read_manifest(run)):
        yield Check(f"versions: written with {others}")
    recipe = load(run / "recipe.yaml", (), plugins=None)
    base = load_base(recipe, trust_remote_code=trust_remote_code, registry=registry)
    for folder in sorted((run / "adapters").glob("*")):
        role = folder.name
        try:
            base.roles.load(role, str(folder), head=(folder / "head.safetensors").is_file())
        except ModelError as error:
            yield Check(f"adapters/{role} on {recipe.model.path}", str(error))
        else:
            yield Check(f"adapters/{role} on {recipe.model.path}")
