"""Finds the checkpoint from which a run is resumed, and checks that the files it needs still exist.

Nothing is written here except by `ResumePoint.restore_adapters`, which is called once the run goes on.
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
RESTORED = "%s: %s had been damaged or removed, and came back from a checkpoint."
LINES = "metrics.jsonl"
"""The name in --allow-changed that accepts that lines of a run are lost."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a run is resumed.

    Attributes:
        checkpoint: that the run goes on from.
        manifest: of the run, made again where it was lost.
        adapters: path inside the run to sha256, of every adapter's file at the checkpoint.
    """

    checkpoint: Checkpoint
    manifest: Mapping[str, Any]
    adapters: Mapping[str, str]

    def restore_adapters(self, folder: RunFolder) -> None:
        """Restore the run's adapters as they were at the checkpoint."""
        recorded = self.manifest.get("artifacts", {})
        damaged_names = [name for name in lost_files(folder.path, self.adapters) if name in recorded]
        restore(folder.path, self.adapters)
        # A file that was written again after the checkpoint differs too, but is not damaged.
        restored = [name for name in damaged_names if recorded[name] == self.adapters[name]]
        if restored:
            log.warning(RESTORED, folder.path, ", ".join(restored))
        others = {name: digest for name, digest in recorded.items() if not name.startswith("adapters/")}
        folder.update_manifest(artifacts={**others, **self.adapters})


def is_finished(run: Path) -> bool:
    """Whether a folder holds a run that is done."""
    return run.is_dir() and is_run(run) and read_manifest(run).get("status") == "done"


def refuse_changes(recipe: Recipe, code: Sequence[Path] = ()) -> None:
    """Check that a finished run has this recipe and code, and restore damaged files of its adapters.

    Args:
        recipe: that was given to resume the run.
        code: files of plugins and rewards that were given.

    Raises:
        RunFolderError: the run was made with another recipe or other code, or cannot be restored.
    """
    run = recipe.run_folder
    manifest = read_manifest(run)
    keys = changed_keys(run, recipe)
    known_hashes = manifest.get("code", {}).values()
    files = [file.name for file in code if sha256(file) not in known_hashes]
    changes = [show_changes(keys)] if keys else []
    differences = [*changes, *(f"{name} has another content" for name in files)]
    if differences:
        raise RunFolderError(
            f"{run}: holds a finished run, which --resume leaves as it is, and what is asked for now is another one: "
            f"{', '.join(differences)}. Train it under another name with name=..., or replace the run with --overwrite."
        )
    adapters = {
        name: digest for name, digest in manifest.get("artifacts", {}).items() if name.startswith("adapters/")
    }
    if lost := restore(run, adapters):
        log.warning(RESTORED, run, ", ".join(lost))


def find_resume_point(recipe: Recipe, name: str | None, allowed: Collection[str] = ()) -> ResumePoint | None:
    """Find the checkpoint from which a run is resumed; None where the run has no checkpoint yet.

    Args:
        recipe: of the run.
        name: of the checkpoint; None: the newest complete one whose lines and adapters exist.
        allowed: names of what may have changed.

    Raises:
        RunFolderError: there is no usable checkpoint, although the run had one.
    """
    run = recipe.run_folder
    checkpoints = Checkpoints(run)
    checkpoint, problems = (
        (checkpoints.read(name), [])
        if name
        else checkpoints.newest(lambda candidate: _check(run, candidate, allowed))
    )
    if checkpoint is None:
        if problems:
            raise RunFolderError(
                f"{problems[0].rstrip('.')}. No checkpoint of {run} can be gone on from, and nothing was touched: "
                "bring what is missing back from a copy, or begin again with --overwrite."
            )
        _refuse_to_begin_again(run)
        return None
    if name:
        _check(run, checkpoint, allowed)
    for damage in problems:
        log.warning("%s. Going on from %s.", damage.rstrip("."), checkpoint.name)
    manifest, warning = _manifest(run, checkpoint)
    if warning:
        log.warning("%s", warning)
    return ResumePoint(checkpoint, manifest, adapters_at(checkpoint, manifest))


def _check(run: Path, checkpoint: Checkpoint, allowed: Collection[str]) -> None:
    """Refuse a checkpoint if some of its lines or adapters are lost and cannot be restored."""
    lost = lost_lines(run, checkpoint.info)
    if lost is not None and LINES not in allowed:
        raise RunFolderError(
            f"{lost}. To go on from {checkpoint.name} without the lines that are gone: --resume-from {checkpoint.name} "
            f"--allow-changed {','.join([*allowed, LINES])}"
        )
    adapters = adapters_at(checkpoint, _manifest(run, checkpoint)[0])
    copies(run, {name: adapters[name] for name in lost_files(run, adapters)})


def _manifest(run: Path, checkpoint: Checkpoint) -> tuple[Mapping[str, Any], str]:
    """The manifest of a run, made again where it was lost, and a warning as text (empty: there is none)."""
    try:
        manifest = read_manifest(run)
    except ManifestLost as error:
        warning = f"{str(error).partition('. ')[0]}. It is made again from the checkpoint {checkpoint.name}."
        return rebuilt(run, checkpoint.info["stages"]), warning
    if others := other_versions(manifest):
        return (
            manifest,
            f"{run} was written with {others}. It goes on, but need not end as it would have there.",
        )
    return manifest, ""


def _refuse_to_begin_again(run: Path) -> None:
    """Refuse to begin a run again that had checkpoints which are gone.

    Raises:
        RunFolderError: the run had a checkpoint.
    """
    try:
        manifest = read_manifest(run)
    except RunFolderError:
        return
    has_progress = manifest.get("checkpoint") or manifest.get("stages_done")
    if has_progress or any((run / "adapters").glob("*/*")):
        raise RunFolderError(
            f"{run}: holds a run whose checkpoints are gone, so it cannot be gone on with, and nothing was touched. "
            "Bring its folder checkpoints/ back from a copy, replace the run with --overwrite, or set another name=..."
        )
