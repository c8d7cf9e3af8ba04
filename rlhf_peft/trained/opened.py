"""Loads a trained run: its base, its policy, its reference and its reward heads."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..api import load_base
from ..engine import POLICY, SharedBase
from ..engine.artifacts import HEAD_FILE
from ..errors import ModelError, RunFolderError, UsageError
from ..recipe import Recipe, RewardModelStage, RlStage, load
from ..recipe.schema import StageBase
from ..registry import Registry
from ..runs import Checkpoints, read_manifest

log = logging.getLogger("rlhf_peft")

ADAPTERS = "adapters"


@dataclass(frozen=True)
class Opened:
    """A run whose roles are loaded on its base.

    Attributes:
        path: the run's folder.
        recipe: of the run.
        base: with the policy, the reference and the reward heads that the run has.
        rewards: names of the reward roles.
        policy: whether the run has trained a policy.
        no_reference: why there is no reference; None: there is one.
    """

    path: Path
    recipe: Recipe
    base: SharedBase
    rewards: list[str]
    policy: bool = True
    no_reference: str | None = None

    def need(self, *, policy: bool = True, reference: bool = True) -> None:
        """Check that the run has the policy and the reference.

        Raises:
            UsageError: the run has trained no policy.
            RunFolderError: the reference cannot be loaded any more.
        """
        if policy and not self.policy:
            trained = ", ".join(self.rewards) or "nothing yet"
            raise UsageError(f"{self.path}: has trained no policy, only {trained}.")
        if reference and self.no_reference is not None:
            raise RunFolderError(self.no_reference)


def open_run(
    path: Path,
    *,
    device: str | None = None,
    trust_remote_code: bool = False,
    registry: Registry | None = None,
) -> Opened:
    """Load the adapters and heads that the finished stages of a run have trained.

    Args:
        path: the run's folder.
        device: that replaces the recipe's; None: the recipe's.
        trust_remote_code: run code from the model's repository.
        registry: makes the quantizer; None: with all installed plugins.

    Raises:
        RunFolderError: it is no run, or has trained nothing yet.
        ModelError: its base or an adapter cannot be loaded.
    """
    done = read_manifest(path).get("stages_done", [])
    recipe = load(path / "recipe.yaml", (), plugins=None)
    if device is not None:
        recipe = recipe.model_copy(update={"device": device})
    folders = {folder.name: folder for folder in sorted((path / ADAPTERS).glob("*")) if folder.is_dir()}
    if not folders:
        raise RunFolderError(f"{path}: has no adapter yet. Let it train first: rlhf-peft run RECIPE --resume")
    base = load_base(recipe, trust_remote_code=trust_remote_code, registry=registry)
    problem: str | None = f"{path}: has trained no policy, so there is no reference."
    if POLICY in folders:
        problem = _load_reference(base, recipe, path, done)
        base.roles.load(POLICY, str(folders[POLICY]))
    left = [stage.name for stage in recipe.stages if stage.name not in done]
    if left:
        log.warning(
            "%s: %s not finished; this is what the stages before have trained.", path, " and ".join(left)
        )
    return Opened(path, recipe, base, _load_rewards(base, recipe, path, folders), POLICY in folders, problem)


def _load_reference(base: SharedBase, recipe: Recipe, path: Path, done: Collection[str]) -> str | None:
    """Load the reference: the policy as it was before the last finished stage that trained it.

    Returns:
        Why there is no reference, as text; None: it was loaded.
    """
    trained = [
        stage for stage in recipe.stages if not isinstance(stage, RewardModelStage) and stage.name in done
    ]
    if not trained:
        return f"{path}: no stage that trains the policy is finished, so nothing says what it began as."
    last = trained[-1]
    try:
        if "policy" in last.init:
            base.roles.load(POLICY, last.init["policy"])
        elif trained[:-1]:
            base.roles.load(POLICY, str(_adapters_before(path, recipe, last) / POLICY))
    except ModelError as error:
        return f"{path}: what the policy began as cannot be loaded: {error}"
    base.roles.freeze_reference()
    return None


def _adapters_before(path: Path, recipe: Recipe, stage: StageBase) -> Path:
    """The folder with the adapters as they were when a stage began."""
    before = recipe.stages[[other.name for other in recipe.stages].index(stage.name) - 1]
    return Checkpoints(path).folder / f"{before.name}-done" / ADAPTERS


def _load_rewards(base: SharedBase, recipe: Recipe, path: Path, folders: dict[str, Path]) -> list[str]:
    """Load the reward heads that the run has trained, or else those that its last RL stage was given.

    Returns:
        The names of the roles that were loaded.
    """
    trained = [
        name for name in folders if name.startswith("reward") and (folders[name] / HEAD_FILE).is_file()
    ]
    for name in trained:
        base.roles.load(name, str(folders[name]), head=True)
    stage = next((stage for stage in reversed(recipe.stages) if isinstance(stage, RlStage)), None)
    if trained or stage is None or "reward" not in stage.init:
        return trained
    checkpoint = Checkpoints(path).folder / f"{stage.name}-done"
    source = str(checkpoint) if any((checkpoint / ADAPTERS).glob("reward*")) else stage.init["reward"]
    try:
        base.roles.load_ensemble("reward", source)
    except ModelError as error:
        log.warning("%s: its reward model is not there any more: %s", path, error)
    return [role for role in base.roles.names if role.startswith("reward")]
