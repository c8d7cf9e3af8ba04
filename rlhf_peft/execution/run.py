"""Executes one run, from its checks to its end."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import library_messages
from ..atomic import FULL
from ..data.progress import progress_reports
from ..engine import POLICY
from ..engine.base_spec import hardware
from ..errors import CheckpointError, RunFolderError
from ..recipe import Recipe, dump
from ..registry import Registry
from ..runs import NullFolder, RunFolder, read_manifest
from ..session.interrupts import Interrupts
from ..stages import Checkpointer, Context, Ranks, Reporter, changed_keys, check_rows, fingerprints, runner
from .prepare import check_data, check_samplers, load_base
from .resume import ResumePoint

log = logging.getLogger("rlhf_peft")


@dataclass(slots=True)
class Result:
    """The result of a finished run.

    Attributes:
        folder: the run's folder.
        stages: stage name to what the stage returned.
        seconds: of the whole run.
    """

    folder: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0


class NullReporter:
    """A reporter that reports nothing."""

    def stage(self, name: str, total: int) -> None:
        """Do nothing."""

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def rows(self, what: str, done: int, total: int | None) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@dataclass
class Run:
    """One run: `execute` prepares it, runs its stages and closes it, however it ends.

    Attributes:
        recipe: checked.
        registry: with the plugins.
        reporter: shows the progress.
        files: plugin and reward files, copied into the run folder.
        trust_remote_code: run code from the model's repository.
        allow_changed: what may differ from the run that is resumed, or from the base of adapters that are loaded.
        overwrite: replace a run of the same name.
        resume_point: where a run of that name is resumed; None: it begins.
        begun_by: a finished run of the recipe's first stages, whose results are used instead of running them again.
        status: of the run, as its manifest has it.
        last: the last stage's metrics.
    """

    recipe: Recipe
    registry: Registry
    reporter: Reporter
    files: Sequence[Path] = ()
    trust_remote_code: bool = False
    allow_changed: Collection[str] = ()
    overwrite: bool = False
    resume_point: ResumePoint | None = None
    begun_by: Path | None = None
    ranks: Ranks = field(default_factory=Ranks)
    status: str = "failed"
    last: dict[str, float] = field(default_factory=dict)
    ctx: Context | None = None
    interrupts: Interrupts = field(default_factory=Interrupts)

    def __post_init__(self) -> None:
        """Plan the run's folder; nothing is written, and an earlier run stays, until a stage has its first metrics."""
        # The path is made absolute now, because foreign code may change the current folder.
        output_dir, name = os.path.abspath(self.recipe.output_dir), self.recipe.name
        self.result = Result(self.recipe.run_folder)
        self.folder: RunFolder = NullFolder(Path(output_dir) / name)
        if self.ranks.main and self.resume_point is not None:
            line_sizes, manifest = self.resume_point.checkpoint.info["lines"], self.resume_point.manifest
            self.folder = RunFolder.resume(
                output_dir, name, lines=line_sizes, manifest=manifest, on_made=self._write_beginning
            )
        elif self.ranks.main:
            self.folder = RunFolder.plan(
                output_dir, name, overwrite=self.overwrite, on_made=self._write_beginning
            )

    def execute(self) -> Result:
        """Prepare, run all stages, and close; returns what the stages returned.

        Raises:
            RlhfPeftError: the run failed or was stopped by a guard; its note says which checkpoint is safe.
        """
        began = time.perf_counter()
        try:
            with progress_reports(self.reporter.rows), self.interrupts.installed():
                ctx = self.ctx = self._prepare()
                for stage in self.recipe.stages[self._begin(ctx) :]:
                    self._run_stage(ctx, stage)
            self.folder.make()
            self.status = "done"
        except BaseException as error:
            self._stopped(error)
            raise
        finally:
            self._close()
        self.ranks.stop()
        self.result.seconds = time.perf_counter() - began
        return self.result

    def _prepare(self) -> Context:
        """Check what later stages will read and need, and load the base."""
        recipe, registry = self.recipe, self.registry
        # The first stage reads its data at once; the data of later stages is checked now, and not after hours.
        later = recipe.model_copy(update={"stages": recipe.stages[1:]})
        for line in check_data(later, registry=registry, encode=False):
            log.debug("%s", line)
        done = () if self.resume_point is None else self.resume_point.checkpoint.info["stages"]
        check_samplers(recipe, registry=registry, done=done)
        self.ranks.start(recipe.device)  # Before the base is loaded: each process has a card of its own.
        base = load_base(
            recipe,
            trust_remote_code=self.trust_remote_code,
            allow_changed=self.allow_changed,
            registry=registry,
        )
        base.check_trainable()
        return Context(
            recipe,
            base,
            registry,
            self.folder,
            self.reporter,
            self.result.stages,
            self.ranks,
            self.interrupts,
        )

    def _begin(self, ctx: Context) -> int:
        """Restore the state from which the run goes on; returns how many stages are done."""
        if self.ranks.main and self.resume_point is None:
            check_rows(ctx)
        ctx.checkpointer.require(
            fingerprints(self.recipe, self.registry, ctx.base, list(self.files)),
            allowed=self.allow_changed,
            changed=changed_keys(self.recipe.run_folder, self.recipe),
        )
        if self.resume_point is not None:
            return len(ctx.checkpointer.resume_from(self.resume_point.checkpoint))
        return 0 if self.begun_by is None else _adopt_run(self.begun_by, ctx)

    def _run_stage(self, ctx: Context, stage: Any) -> None:
        ctx.seed_everything(stage.name)
        began = time.perf_counter()
        outcome = runner(stage.stage)(stage, ctx)
        outcome["seconds"] = time.perf_counter() - began
        self.result.stages[stage.name] = outcome
        self.last = outcome.get("metrics", {})
        ctx.checkpointer.stage_done(stage)
        self.folder.stage_done(stage.name)

    def _write_beginning(self, folder: RunFolder) -> None:
        """Write the first files of the run's folder; called when the first metrics exist."""
        ctx, resume_point = self.ctx, self.resume_point
        assert ctx is not None
        if resume_point is not None:
            resume_point.restore_adapters(folder)
            ctx.checkpointer.checkpoints.forget_after(resume_point.checkpoint.info["number"])
            folder.update_manifest(stages_done=resume_point.checkpoint.info["stages"])
        folder.write_recipe(dump(self.recipe))
        library_messages.write_to(folder.log)
        folder.update_manifest(
            seed=self.recipe.seed, plugins=self.registry.versions(), hardware=hardware(ctx.base.device)
        )
        for file in self.files:
            folder.copy_code(file)
        self.registry.broadcast("rlhf_peft_run_start", run=ctx.view)

    def _stopped(self, error: BaseException) -> None:
        """Save a checkpoint after an error or an interruption, and note it on the error."""
        stopped = getattr(error, "exit_code", 1) == 3 or isinstance(error, KeyboardInterrupt)
        self.status = "stopped" if stopped else "failed"
        library_messages.keep(f"{self.status}: {type(error).__name__}: {error}")
        if self.ctx is not None and self.folder.is_made:
            _save_checkpoint(self.ctx.checkpointer, error)

    def _close(self) -> None:
        """Write the run's final status, notify the observers, and release the folder."""
        folder_is_made = self.ctx is not None and self.folder.is_made
        if folder_is_made:
            _close_folder(self.folder, self.status, disk_error_reported=_is_disk_error(sys.exception()))
        self.reporter.close()
        if folder_is_made and self.ctx is not None:
            view = self.ctx.view
            self.registry.broadcast("rlhf_peft_run_end", run=view, status=self.status, metrics=self.last)
        self.folder.release()
        library_messages.write_to(None)


def _close_folder(folder: RunFolder, status: str, *, disk_error_reported: bool = False) -> None:
    """Write the final status of a run; an error of the disk is only logged, so that it does not hide why the run ended.

    Args:
        folder: of the run.
        status: of the run.
        disk_error_reported: an error of the disk has been reported already, and is not logged again.
    """
    try:
        folder.finish(status)
    except (OSError, RunFolderError) as error:
        if not disk_error_reported:
            log.warning("%s: how the run ended cannot be written down: %s", folder.path, error)


def _is_disk_error(error: BaseException | None) -> bool:
    """Whether an error says that nothing can be written to the disk."""
    return isinstance(error, CheckpointError) or (isinstance(error, OSError) and error.errno in FULL)


def _save_checkpoint(checkpointer: Checkpointer, error: BaseException) -> None:
    """Save a checkpoint of an interrupted run, and add its name to the error as a note."""
    try:
        name = checkpointer.save()
    except (CheckpointError, RunFolderError) as failed:
        if not _is_disk_error(error) and str(failed) != str(error):
            error.add_note(str(failed))
        name = checkpointer.newest_name
    if name is not None:
        after = "To go on" if isinstance(error, KeyboardInterrupt) else "After a fix"
        error.add_note(f"Checkpoint {name} is safe. {after}: the same command with --resume.")


def _adopt_run(earlier: Path, ctx: Context) -> int:
    """Load an earlier run's adapters and copy its files into this run; returns its number of stages.

    Args:
        earlier: folder of a finished run.
        ctx: of this run.

    Raises:
        RunFolderError: the earlier run is not finished, or its stages are not the first ones of the recipe.
    """
    done = read_manifest(earlier).get("stages_done", [])
    first = [stage.name for stage in ctx.recipe.stages[: len(done)]]
    if read_manifest(earlier).get("status") != "done" or done != first:
        raise RunFolderError(f"{earlier}: not a finished run of the stages {', '.join(first) or '(none)'}.")
    roles = [folder.name for folder in sorted((earlier / "adapters").glob("*"))]
    if POLICY in roles:
        ctx.base.roles.load(POLICY, str(earlier))
    if any(role.startswith("reward") for role in roles):
        ctx.base.roles.load_ensemble("reward", str(earlier))
    ctx.run.make()
    shutil.copytree(earlier / "adapters", ctx.run.path / "adapters")
    for role in roles:
        ctx.run.wrote_adapter(role)
    for name in ("metrics.jsonl", "samples.jsonl"):
        if (earlier / name).is_file():
            shutil.copyfile(earlier / name, ctx.run.path / name)
    ctx.run.update_manifest(stages_done=done, begun=earlier.name)
    ctx.checkpointer.stages = list(done[:-1])
    ctx.checkpointer.stage_done(ctx.recipe.stages[len(done) - 1])
    return len(done)
