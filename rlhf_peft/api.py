"""The Python API: what the command line does, in a few lines.

import rlhf_peft
recipe = rlhf_peft.load_recipe("quickstart", ["seed=3"])
result = rlhf_peft.run(recipe)
print(result.folder, result.stages["rl"]["after"])
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .data import require
from .engine import POLICY, SharedBase, Source, cap
from .engine.source import resolve_device
from .errors import RunFolderError
from .recipe import DatasetSource, PreferenceStage, Recipe, dump, load
from .registry import Registry
from .runs import Elsewhere, RunFolder, read_manifest
from .stages import Context, Ranks, Reporter, lora_spec, read_source, runner

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


def load_base(recipe: Recipe, *, trust_remote_code: bool = False) -> SharedBase:
    """The shared base that a recipe asks for.

    Raises:
        ModelError: the model, its tokenizer or its quantization cannot be used here.
    """
    model = recipe.model
    source = Source(
        path=model.path,
        revision=model.revision,
        quantization=model.quantization,
        double_quantization=model.double_quantization,
        compute_dtype=model.compute_dtype,
        attn_implementation=model.attn_implementation,
        device=recipe.device,
        trust_remote_code=trust_remote_code,
    )
    cap(resolve_device(source.device))
    return SharedBase(
        source,
        lora_spec(recipe.lora),
        seed=recipe.seed,
        max_length=model.max_length,
        gradient_checkpointing=model.gradient_checkpointing,
        merge_rollouts=model.merge_rollouts,
    )


def check_data(recipe: Recipe, *, registry: Registry | None = None) -> Iterator[str]:
    """Read every dataset of a recipe and see whether its stage can use it; one line each.

    Raises:
        DataError: one is missing, malformed, empty, or in another format than its stage needs.
    """
    registry = registry or Registry.load()
    for stage in recipe.stages:
        method = stage.method if isinstance(stage, PreferenceStage) else stage.stage
        sources: list[tuple[DatasetSource, str | None]] = [(stage.dataset, None)]
        if stage.eval.dataset is not None:
            sources.append((stage.eval.dataset, stage.eval.split))
        elif stage.eval.split is not None:
            sources.append((stage.dataset, stage.eval.split))
        for source, split in sources:
            rows = read_source(source, registry, split, stage=stage.name)
            called = source.path or str(source.name)
            found = require(rows, method, called, stage=stage.name)
            kind = f"{'conversational ' if found.conversational else ''}{found.kind}"
            yield f"{stage.name}: {called} {split or source.split}: {len(rows):,} rows, {kind}"


def run(
    recipe: Recipe,
    *,
    registry: Registry | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    code_files: Sequence[Path] = (),
    trust_remote_code: bool = False,
    begun_by: Path | None = None,
) -> Result:
    """Run all stages of a recipe.

    Args:
        recipe: from `load_recipe`.
        registry: with the plugins; default: built-ins and installed ones.
        overwrite: replace a run of the same name.
        reporter: is told what happens; default: nobody.
        code_files: plugin and reward files, copied into the run folder.
        trust_remote_code: run code from the model's repository.
        begun_by: a finished run of the recipe's first stages, taken up instead of running them again.

    Raises:
        UsageError: the recipe, the data, the model or the folder cannot be used; nothing was trained.
        RlhfPeftError: the run failed or was stopped by a guard.
    """
    begun = time.perf_counter()
    registry = registry or Registry.load()
    ranks = Ranks()
    reporter = reporter if reporter is not None and ranks.main else Silent()

    def begin(folder: RunFolder) -> None:
        folder.write_recipe(dump(recipe))
        folder.update_manifest(seed=recipe.seed, plugins=registry.versions())
        for file in code_files:
            folder.copy_code(file)
        registry.broadcast("rlhf_peft_run_start", run=ctx.view)

    # Until a stage has its first figures nothing is written, and a run that is to be replaced stays as it is.
    folder: RunFolder = Elsewhere(recipe.run_folder)
    if ranks.main:
        folder = RunFolder.plan(recipe.output_dir, recipe.name, overwrite=overwrite, made=begin)
    result = Result(folder.path)
    status = "failed"
    last: dict[str, float] = {}
    try:
        # The first stage reads its data at once; that of the later ones is looked at now, not after hours.
        later = recipe.model_copy(update={"stages": recipe.stages[1:]})
        for line in check_data(later, registry=registry):
            log.debug("%s", line)
        base = load_base(recipe, trust_remote_code=trust_remote_code)
        ranks.start(base.device)
        ctx = Context(recipe, base, registry, folder, reporter, result.stages, ranks)
        done = 0 if begun_by is None else _take_up(begun_by, ctx)
        for stage in recipe.stages[done:]:
            ctx.seed_everything(stage.name)
            began = time.perf_counter()
            outcome = runner(stage.stage)(stage, ctx)
            outcome["seconds"] = time.perf_counter() - began
            result.stages[stage.name] = outcome
            last = outcome.get("metrics", {})
            folder.stage_done(stage.name)
        status = "done"
    except BaseException as error:
        status = (
            "stopped"
            if getattr(error, "exit_code", 1) == 3 or isinstance(error, KeyboardInterrupt)
            else "failed"
        )
        raise
    finally:
        reporter.close()
        if folder.made:
            folder.finish(status)
            registry.broadcast("rlhf_peft_run_end", run=ctx.view, status=status, metrics=last)
    ranks.stop()
    result.seconds = time.perf_counter() - begun
    return result


def _take_up(begun: Path, ctx: Context) -> int:
    """Make the base, and the run's folder, what they were when an earlier run ended; returns its number of stages.

    Raises:
        RunFolderError: it is not finished, or its stages are not the recipe's first.
    """
    done = read_manifest(begun).get("stages_done", [])
    first = [stage.name for stage in ctx.recipe.stages[: len(done)]]
    if read_manifest(begun).get("status") != "done" or done != first:
        raise RunFolderError(f"{begun}: not a finished run of the stages {', '.join(first) or '(none)'}.")
    roles = [folder.name for folder in sorted((begun / "adapters").glob("*"))]
    if POLICY in roles:
        ctx.base.load_role(POLICY, str(begun))
    if any(role.startswith("reward") for role in roles):
        ctx.base.load_ensemble("reward", str(begun))
    ctx.run.make()
    shutil.copytree(begun / "adapters", ctx.run.path / "adapters")
    for name in ("metrics.jsonl", "samples.jsonl"):
        if (begun / name).is_file():
            shutil.copyfile(begun / name, ctx.run.path / name)
    ctx.run.update_manifest(stages_done=done, begun=begun.name)
    return len(done)
