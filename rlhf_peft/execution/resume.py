"""What a run is taken up from: which checkpoint, and whether all that it stands on is still there.

Nothing is written here except by `bring_back`, which is called once the run goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunFolderError
from ..recipe import Recipe
from ..runs import Checkpoint, Checkpoints, RunFolder, is_run, other_versions, read_manifest
from ..runs.manifest import ManifestLost, rebuilt, sha256
from ..runs.restore import adapters_at, copies, lost_files, lost_lines, restore
from ..session.recipe_changes import changed_keys, show_changes

log = logging.getLogger("rlhf_peft")
CAME_BACK = "%s: %s had been damaged or removed, and came back from a checkpoint."
LINES = "metrics.jsonl"
"""The name by which --allow-changed accepts that lines of a run are gone."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A run that is taken up.

    Attributes:
        checkpoint: where it goes on from.
        manifest: of the run, made again where it was lost.
        adapters: path inside the run to sha256, of every file of an adapter as it is to be.
    """

    checkpoint: Checkpoint
    manifest: Mapping[str, Any]
    adapters: Mapping[str, str]

    def bring_back(self, folder: RunFolder) -> None:
        """Make the run's adapters what they were at the checkpoint."""
        noted = self.manifest.get("artifacts", {})
        damaged = [name for name in lost_files(folder.path, self.adapters) if name in noted]
        restore(folder.path, self.adapters)
        # What was written after the checkpoint is another file too, and is no damage.
        came_back = [name for name in damaged if noted[name] == self.adapters[name]]
        if came_back:
            log.warning(CAME_BACK, folder.path, ", ".join(came_back))
        others = {name: found for name, found in noted.items() if not name.startswith("adapters/")}
        folder.update_manifest(artifacts={**others, **self.adapters})


def is_finished(run: Path) -> bool:
    """Whether a run that has ended is there."""
    return run.is_dir() and is_run(run) and read_manifest(run).get("status") == "done"


def refuse_changes(recipe: Recipe, code: Sequence[Path] = ()) -> None:
    """Let nobody take a finished run for one with other settings; bring back what it has lost of its adapters.

    Args:
        recipe: that the run is asked for with.
        code: files of plugins and rewards that it is asked for with.

    Raises:
        RunFolderError: the run was made with another recipe, or other code, or is damaged for good.
    """
    run = recipe.run_folder
    manifest = read_manifest(run)
    keys = changed_keys(run, recipe)
    then = manifest.get("code", {}).values()
    files = [file.name for file in code if sha256(file) not in then]
    told_keys = [show_changes(keys)] if keys else []
    differences = [*told_keys, *(f"{name} has another content" for name in files)]
    if differences:
        raise RunFolderError(
            f"{run}: holds a finished run, which --resume leaves as it is, and what is asked for now is another one: "
            f"{', '.join(differences)}. Train it under another name with name=..., or replace the run with --overwrite."
        )
    noted = {
        name: found for name, found in manifest.get("artifacts", {}).items() if name.startswith("adapters/")
    }
    if lost := restore(run, noted):
        log.warning(CAME_BACK, run, ", ".join(lost))


def begun(recipe: Recipe, name: str | None, allowed: Collection[str] = ()) -> Begun | None:
    """What a run is resumed from; None where there is nothing yet.

    Args:
        recipe: of the run.
        name: of the checkpoint; None: the newest that is whole, and whose lines and adapters are there.
        allowed: names of what may have changed.

    Raises:
        RunFolderError: there is no checkpoint to go on from, and the run has come further than its first one.
    """
    run = recipe.run_folder
    checkpoints = Checkpoints(run)
    found, wrong = (
        (checkpoints.read(name), []) if name else checkpoints.newest(lambda one: _check(run, one, allowed))
    )
    if found is None:
        if wrong:
            raise RunFolderError(
                f"{wrong[0].rstrip('.')}. No checkpoint of {run} can be gone on from, and nothing was touched: bring "
                "what is missing back from a copy, or begin again with --overwrite."
            )
        _refuse_to_begin_again(run)
        return None
    if name:
        _check(run, found, allowed)
    for damage in wrong:
        log.warning("%s. Going on from %s.", damage.rstrip("."), found.name)
    manifest, warning = _manifest(run, found)
    if warning:
        log.warning("%s", warning)
    return Begun(found, manifest, adapters_at(found, manifest))


def _check(run: Path, found: Checkpoint, allowed: Collection[str]) -> None:
    """Refuse a checkpoint of whose lines or adapters something is gone for good."""
    lost = lost_lines(run, found.info)
    if lost is not None and LINES not in allowed:
        raise RunFolderError(
            f"{lost}. To go on from {found.name} without the lines that are gone: --resume-from {found.name} "
            f"--allow-changed {','.join([*allowed, LINES])}"
        )
    adapters = adapters_at(found, _manifest(run, found)[0])
    copies(run, {name: adapters[name] for name in lost_files(run, adapters)})


def _manifest(run: Path, found: Checkpoint) -> tuple[Mapping[str, Any], str]:
    """The manifest of a run, made again where it was lost; and a warning."""
    try:
        manifest = read_manifest(run)
    except ManifestLost as error:
        made = f"{str(error).partition('. ')[0]}. It is made again from the checkpoint {found.name}."
        return rebuilt(run, found.info["stages"]), made
    if others := other_versions(manifest):
        return (
            manifest,
            f"{run} was written with {others}. It goes on, but need not end as it would have there.",
        )
    return manifest, ""


def _refuse_to_begin_again(run: Path) -> None:
    """Do not replace a run whose checkpoints are gone.

    Raises:
        RunFolderError: it had one.
    """
    try:
        manifest = read_manifest(run)
    except RunFolderError:
        return
    had = manifest.get("checkpoint") or manifest.get("stages_done")
    if had or any((run / "adapters").glob("*/*")):
        raise RunFolderError(
            f"{run}: holds a run whose checkpoints are gone, so it cannot be gone on with, and nothing was touched. "
            "Bring its folder checkpoints/ back from a copy, replace the run with --overwrite, or set another name=..."
        )
