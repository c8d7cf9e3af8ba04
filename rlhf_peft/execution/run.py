"""One run, from its checks to its end."""

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
from ..data.progress import watched
from ..engine import POLICY
from ..engine.base_spec import hardware
from ..errors import CheckpointError, RunFolderError
from ..recipe import Recipe, dump
from ..registry import Registry
from ..runs import NullFolder, RunFolder, read_manifest
from ..stages import Context, Ranks, Reporter, Saver, changed_keys, check_rows, fingerprints, runner
from .prepare import check_data, check_samplers, load_base
from .resume import Begun

log = logging.getLogger("rlhf_peft")


@dataclass(slots=True)
class Result:
    """A finished run.

    Attributes:
        folder: where it is.
        stages: stage name to what the stage returned.
        seconds: of the whole run.
    """

    folder: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0


class Silent:
    """A reporter that says nothing."""

    def stage(self, name: str, total: int) -> None:
        """Nothing."""

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def rows(self, what: str, done: int, total: int | None) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@dataclass
class Run:
    """One run: `execute` prepares it, runs its stages and closes it, however it ends.

    Attributes:
        recipe: checked.
        registry: with the plugins.
        reporter: is told what happens.
        files: plugin and reward files, copied into the run folder.
        trust_remote_code: run code from the model's repository.
        allow_changed: what may differ from the run that is resumed, or from the base of adapters that are loaded.
        overwrite: replace a run of the same name.
        begun: where a run of that name is to go on; None: it begins.
        begun_by: a finished run of the recipe's first stages, taken up instead of running them again.
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
    begun: Begun | None = None
    begun_by: Path | None = None
    ranks: Ranks = field(default_factory=Ranks)
    status: str = "failed"
    last: dict[str, float] = field(default_factory=dict)
    ctx: Context | None = None

    def __post_init__(self) -> None:
        """Until a stage has its first figures nothing is written, and a run that is to be replaced stays as it is."""
        # The folder is fixed now: code of others may change the current one.
        output_dir, name = os.path.abspath(self.recipe.output_dir), self.recipe.name
        self.result = Result(self.recipe.run_folder)
        self.folder: RunFolder = NullFolder(Path(output_dir) / name)
        if self.ranks.main and self.begun is not None:
            lines, manifest = self.begun.checkpoint.info["lines"], self.begun.manifest
            self.folder = RunFolder.resume(
                output_dir, name, lines=lines, manifest=manifest, on_made=self._write_beginning
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
            with watched(self.reporter.rows):
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
        # The first stage reads its data at once; that of the later ones is looked at now, not after hours.
        later = recipe.model_copy(update={"stages": recipe.stages[1:]})
        for line in check_data(later, registry=registry, encode=False):
            log.debug("%s", line)
        done = () if self.begun is None else self.begun.checkpoint.info["stages"]
        check_samplers(recipe, registry=registry, done=done)
        base = load_base(
            recipe,
            trust_remote_code=self.trust_remote_code,
            allow_changed=self.allow_changed,
            registry=registry,
        )
        base.check_trainable()
        self.ranks.start(base.device)
        return Context(recipe, base, registry, self.folder, self.reporter, self.result.stages, self.ranks)

    def _begin(self, ctx: Context) -> int:
        """Make the base what it was where the run goes on; returns how many stages are done."""
        if self.ranks.main and self.begun is None:
            check_rows(ctx)
        ctx.saver.fingerprints = fingerprints(self.recipe, self.registry, ctx.base, list(self.files))
        ctx.saver.allowed = self.allow_changed
        ctx.saver.changed = changed_keys(self.recipe.run_folder, self.recipe)
        if self.begun is not None:
            return len(ctx.saver.take_up(self.begun.checkpoint))
        return 0 if self.begun_by is None else _take_up(self.begun_by, ctx)

    def _run_stage(self, ctx: Context, stage: Any) -> None:
        ctx.seed_everything(stage.name)
        began = time.perf_counter()
        outcome = runner(stage.stage)(stage, ctx)
        outcome["seconds"] = time.perf_counter() - began
        self.result.stages[stage.name] = outcome
        self.last = outcome.get("metrics", {})
        ctx.saver.finished(stage)
        self.folder.stage_done(stage.name)

    def _write_beginning(self, folder: RunFolder) -> None:
        """What a run folder begins with; called when the first figures are there."""
        ctx, begun = self.ctx, self.begun
        assert ctx is not None
        if begun is not None:
            begun.bring_back(folder)
            ctx.saver.checkpoints.forget_after(begun.checkpoint.info["number"])
            folder.update_manifest(stages_done=begun.checkpoint.info["stages"])
        folder.write_recipe(dump(self.recipe))
        library_messages.write_to(folder.log)
        folder.update_manifest(
            seed=self.recipe.seed, plugins=self.registry.versions(), hardware=hardware(ctx.base.device)
        )
        for file in self.files:
            folder.copy_code(file)
        self.registry.broadcast("rlhf_peft_run_start", run=ctx.view)

    def _stopped(self, error: BaseException) -> None:
        """Save where the run stood, and note it on the error."""
        stopped = getattr(error, "exit_code", 1) == 3 or isinstance(error, KeyboardInterrupt)
        self.status = "stopped" if stopped else "failed"
        library_messages.keep(f"{self.status}: {type(error).__name__}: {error}")
        if self.ctx is not None and self.folder.is_made:
            _save(self.ctx.saver, error)

    def _close(self) -> None:
        """Write how the run ended, tell the observers, and release the folder."""
        made = self.ctx is not None and self.folder.is_made
        if made:
            _finish(self.folder, self.status, told=_of_the_disk(sys.exception()))
        self.reporter.close()
        if made and self.ctx is not None:
            view = self.ctx.view
            self.registry.broadcast("rlhf_peft_run_end", run=view, status=self.status, metrics=self.last)
        self.folder.release()
        library_messages.write_to(None)


def _finish(folder: RunFolder, status: str, *, told: bool = False) -> None:
    """Close the run; a full disk does not hide why it ended, nor is it said again where it is `told`."""
    try:
        folder.finish(status)
    except (OSError, RunFolderError) as error:
        if not told:
            log.warning("%s: how the run ended cannot be written down: %s", folder.path, error)


def _of_the_disk(error: BaseException | None) -> bool:
    """Whether an error is that nothing can be written, which needs to be said once."""
    return isinstance(error, CheckpointError) or (isinstance(error, OSError) and error.errno in FULL)


def _save(saver: Saver, error: BaseException) -> None:
    """Write down where a run stood when it was interrupted, and say so."""
    try:
        name = saver.save()
    except (CheckpointError, RunFolderError) as failed:
        if not _of_the_disk(error) and str(failed) != str(error):
            error.add_note(str(failed))
        name = saver.safe
    if name is not None:
        after = "To go on" if isinstance(error, KeyboardInterrupt) else "After a fix"
        error.add_note(f"Checkpoint {name} is safe. {after}: the same command with --resume.")


def _take_up(earlier: Path, ctx: Context) -> int:
    """Make the base, and the run's folder, what they were when an earlier run ended; returns its number of stages.

    Raises:
        RunFolderError: it is not finished, or its stages are not the recipe's first.
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
    ctx.saver.stages = list(done[:-1])
    ctx.saver.finished(ctx.recipe.stages[len(done) - 1])
    return len(done)
