"""The Python API: what the command line does, in a few lines.

import rlhf_peft
recipe = rlhf_peft.load_recipe("quickstart", ["seed=3"])
result = rlhf_peft.run(recipe)
print(result.folder, result.stages["rl"]["after"])
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import library_messages
from .atomic import FULL
from .data import require
from .data.progress import watched
from .engine import POLICY, SharedBase, cap
from .engine.base_spec import hardware, resolve_device
from .errors import CheckpointError, ModelError, RunFolderError, UsageError
from .recipe import DatasetSource, Recipe, RlStage, check_settings, dump, load
from .registry import Registry, base_spec
from .resuming import begun, is_finished, refuse_changes
from .runs import Check, Checkpoints, Elsewhere, RunFolder, other_versions, read_manifest, verify_files
from .session.fingerprints import fingerprints
from .stages import (
    Context,
    Ranks,
    Reporter,
    Saver,
    changed_keys,
    check_rows,
    lora_spec,
    method_of,
    offline_encoder,
    read_source,
    runner,
    usable_rows,
)

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

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def load_recipe(
    source: str | Path, overrides: Sequence[str] = (), *, registry: Registry | None = None
) -> Recipe:
    """A validated recipe: a path, or the name of a shipped one, with `K=V` overrides.

    Raises:
        RecipeError: with every problem in it.
    """
    registry = registry or Registry.load()
    return load(source, overrides, plugins=registry)


def load_base(
    recipe: Recipe,
    *,
    trust_remote_code: bool = False,
    allow_changed: Collection[str] = (),
    registry: Registry | None = None,
) -> SharedBase:
    """The shared base that a recipe asks for.

    Args:
        recipe: checked.
        trust_remote_code: run code from the model's repository.
        allow_changed: what may differ from the base of adapters that are loaded.
        registry: makes the quantizer; None: with all installed plugins.

    Raises:
        ModelError: the model, its tokenizer or its quantization cannot be used here.
        PluginError: the quantizer is unknown or could not be made.
    """
    spec = base_spec(recipe, registry or Registry.load(), trust_remote_code=trust_remote_code)
    cap(resolve_device(spec.device))
    model = recipe.model
    return SharedBase(
        spec,
        lora_spec(recipe.lora),
        seed=recipe.seed,
        max_length=model.max_length,
        gradient_checkpointing=model.gradient_checkpointing,
        merge_rollouts=model.merge_rollouts,
        fast=model.fast,
        accepted=tuple(allow_changed),
    )


def check_data(recipe: Recipe, *, registry: Registry | None = None, encode: bool = True) -> Iterator[str]:
    """Read every dataset of a recipe and see whether its stage can use it; one line each.

    Raises:
        DataError: one is missing, malformed, empty, or in another format than its stage needs.
    """
    registry = registry or Registry.load()
    for stage in recipe.stages:
        method = method_of(stage)
        sources: list[tuple[DatasetSource, str | None]] = [(stage.dataset, None)]
        if stage.eval.dataset is not None:
            sources.append((stage.eval.dataset, stage.eval.split))
        elif stage.eval.split is not None:
            sources.append((stage.dataset, stage.eval.split))
        for source, split in sources:
            rows = read_source(source, registry, split, stage=stage.name)
            called = source.path or str(source.name)
            found = require(rows, method, called, stage=stage.name, say=encode)
            kind = f"{'conversational ' if found.conversational else ''}{found.kind}"
            encoder = offline_encoder(recipe, source) if encode else None
            usable = None if encoder is None else usable_rows(rows, found, stage, source, encoder, registry)
            left_out = "" if usable in (None, len(rows)) else f", {usable:,} of them usable"
            yield f"{stage.name}: {called} {split or source.split}: {len(rows):,} rows, {kind}{left_out}"


def check_samplers(recipe: Recipe, *, registry: Registry | None = None, done: Collection[str] = ()) -> None:
    """Whether what the samplers of a recipe need is there, such as a server: asked before the model is loaded.

    Args:
        recipe: from `load_recipe`.
        registry: makes the samplers.
        done: stages that sample no more.

    Raises:
        SamplerError: it is not.
    """
    registry = registry or Registry.load()
    for stage in recipe.stages:
        if isinstance(stage, RlStage) and stage.name not in done:
            sampler_ready(registry, stage.sampler.name, stage.sampler.options)


def sampler_ready(registry: Registry, name: str, options: Mapping[str, Any]) -> None:
    """Ask one sampler.

    Args:
        registry: makes it.
        name: of the sampler.
        options: its own.

    Raises:
        SamplerError: what it needs is not there.
    """
    sampler = registry.make("samplers", name, options)
    if hasattr(sampler, "ready"):
        sampler.ready()


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

    An interruption or an error leaves a checkpoint of the last update; with `resume` the run goes on from there, and
    ends with the very files that it would have ended with.

    Args:
        recipe: from `load_recipe`.
        registry: with the plugins; default: built-ins and installed ones.
        overwrite: replace a run of the same name.
        reporter: is told what happens; default: nobody.
        code_files: plugin and reward files, copied into the run folder.
        trust_remote_code: run code from the model's repository.
        begun_by: a finished run of the recipe's first stages, taken up instead of running them again.
        resume: go on with a run of that name; begin where there is none, and do nothing where it is finished.
        resume_from: name of the checkpoint to go on from; default: the newest that is whole.
        allow_changed: what may differ from the run that is resumed, or from the base of adapters that are loaded, by
            the names of the message that refuses it.

    Raises:
        UsageError: the recipe, the data, the model or the folder cannot be used; nothing was trained.
        RlhfPeftError: the run failed or was stopped by a guard.
    """
    clock = time.perf_counter()
    files = [Path(os.path.abspath(file)) for file in code_files]
    registry = registry or Registry.load()
    _check_tracking(recipe)
    check_settings(recipe, registry)
    ranks = Ranks()
    ctx: Context | None = None
    reporter = reporter if reporter is not None and ranks.main else Silent()

    if resume and resume_from is None and is_finished(recipe.run_folder):
        refuse_changes(recipe, code_files)
        return Result(recipe.run_folder, _results(recipe.run_folder))
    taken = begun(recipe, resume_from, allow_changed) if resume or resume_from else None
    found = None if taken is None else taken.checkpoint

    def begin(folder: RunFolder) -> None:
        assert ctx is not None
        if found is not None and taken is not None:
            taken.bring_back(folder)
            ctx.saver.checkpoints.forget_after(found.info["number"])
            folder.update_manifest(stages_done=found.info["stages"])
        folder.write_recipe(dump(recipe))
        library_messages.write_to(folder.log)
        told = {"plugins": registry.versions(), "hardware": hardware(ctx.base.device)}
        folder.update_manifest(seed=recipe.seed, **told)
        for file in files:
            folder.copy_code(file)
        registry.broadcast("rlhf_peft_run_start", run=ctx.view)

    # Until a stage has its first figures nothing is written, and a run that is to be replaced stays as it is.
    # The folder is fixed now: code of others may change the current one.
    output_dir = os.path.abspath(recipe.output_dir)
    folder: RunFolder = Elsewhere(Path(output_dir) / recipe.name)
    if ranks.main and taken is not None:
        lines = taken.checkpoint.info["lines"]
        folder = RunFolder.resume(output_dir, recipe.name, lines=lines, manifest=taken.manifest, made=begin)
    elif ranks.main:
        folder = RunFolder.plan(output_dir, recipe.name, overwrite=overwrite or resume, made=begin)
    result = Result(recipe.run_folder)
    watching = ExitStack()
    watching.enter_context(watched(getattr(reporter, "rows", None)))
    status = "failed"
    last: dict[str, float] = {}
    try:
        # The first stage reads its data at once; that of the later ones is looked at now, not after hours.
        later = recipe.model_copy(update={"stages": recipe.stages[1:]})
        for line in check_data(later, registry=registry, encode=False):
            log.debug("%s", line)
        check_samplers(recipe, registry=registry, done=found.info["stages"] if found is not None else ())
        base = load_base(
            recipe, trust_remote_code=trust_remote_code, allow_changed=allow_changed, registry=registry
        )
        base.check_trainable()
        ranks.start(base.device)
        ctx = Context(recipe, base, registry, folder, reporter, result.stages, ranks)
        if ranks.main and found is None:
            check_rows(ctx)
        ctx.saver.fingerprints = fingerprints(recipe, registry, base, files)
        ctx.saver.allowed = allow_changed
        ctx.saver.changed = changed_keys(recipe.run_folder, recipe)
        done = 0
        if found is not None:
            done = len(ctx.saver.take_up(found))
        elif begun_by is not None:
            done = _take_up(begun_by, ctx)
        for stage in recipe.stages[done:]:
            ctx.seed_everything(stage.name)
            began = time.perf_counter()
            outcome = runner(stage.stage)(stage, ctx)
            outcome["seconds"] = time.perf_counter() - began
            result.stages[stage.name] = outcome
            last = outcome.get("metrics", {})
            ctx.saver.finished(stage)
            folder.stage_done(stage.name)
        folder.make()
        status = "done"
    except BaseException as error:
        stopped = getattr(error, "exit_code", 1) == 3 or isinstance(error, KeyboardInterrupt)
        status = "stopped" if stopped else "failed"
        library_messages.keep(f"{status}: {type(error).__name__}: {error}")
        if ctx is not None and folder.made:
            _save(ctx.saver, error)
        raise
    finally:
        if ctx is not None and folder.made:
            _finish(folder, status, told=_of_the_disk(sys.exception()))
        watching.close()
        reporter.close()
        if ctx is not None and folder.made:
            registry.broadcast("rlhf_peft_run_end", run=ctx.view, status=status, metrics=last)
        folder.release()
        library_messages.write_to(None)
    ranks.stop()
    result.seconds = time.perf_counter() - clock
    return result


def _check_tracking(recipe: Recipe) -> None:
    """Refuse a tracker that is not installed, before anything is loaded.

    Raises:
        UsageError: one is not.
    """
    from accelerate.tracking import get_available_trackers

    there = {str(tracker) for tracker in get_available_trackers()}
    for name in recipe.tracking:
        if name not in there:
            raise UsageError(f"tracking: {name} is not installed here. Type:  pip install {name}")


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    """What the stages of a run returned, as far as its last checkpoint knows."""
    found, _ = Checkpoints(folder).newest()
    return {} if found is None else dict(found.info["results"])


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


def verify(
    run: Path, *, trust_remote_code: bool = False, registry: Registry | None = None
) -> Iterator[Check]:
    """Check every hash of a run, and load every adapter and head on its base.

    Args:
        run: its folder.
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
