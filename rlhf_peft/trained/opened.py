"""A finished run, loaded again: its base, its policy, what the policy began as, its reward heads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..api import load_base
from ..engine import POLICY, REFERENCE, SharedBase
from ..engine.artifacts import HEAD_FILE
from ..errors import RunFolderError
from ..recipe import Recipe, RewardModelStage, load
from ..runs import Checkpoints, read_manifest

ADAPTERS = "adapters"


@dataclass(frozen=True)
class Opened:
    """A run's roles on its base.

    Attributes:
        path: the run's folder.
        recipe: of the run.
        base: with the policy, the reference and all reward heads that the run has.
        rewards: names of the reward roles.
    """

    path: Path
    recipe: Recipe
    base: SharedBase
    rewards: list[str]


def open_run(
    path: Path,
    *,
    device: str | None = None,
    quantization: str | None = None,
    trust_remote_code: bool = False,
    allow_changed: Collection[str] = (),
) -> Opened:
    """Load what a run has trained.

    Args:
        path: the run's folder.
        device: instead of the recipe's.
        quantization: instead of the recipe's; name it in `allow_changed` too.
        trust_remote_code: run code from the model's repository.
        allow_changed: in what the base may differ from the one that was trained on.

    Raises:
        RunFolderError: it is no run, or has trained nothing yet.
        ModelError: its base or an adapter cannot be loaded.
    """
    read_manifest(path)
    recipe = load(path / "recipe.yaml", (), plugins=None)
    if device is not None:
        recipe = recipe.model_copy(update={"device": device})
    if quantization is not None:
        recipe = recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"quantization": quantization})}
        )
    folders = {folder.name: folder for folder in sorted((path / ADAPTERS).glob("*")) if folder.is_dir()}
    if not folders:
        raise RunFolderError(f"{path}: has no adapter yet. Let it train first: rlhf-peft run RECIPE --resume")
    base = load_base(recipe, trust_remote_code=trust_remote_code, allow_changed=allow_changed)
    if POLICY in folders:
        _load_reference(base, recipe, path)
        base.load_role(POLICY, str(folders[POLICY]))
    rewards = [
        name for name in folders if name.startswith("reward") and (folders[name] / HEAD_FILE).is_file()
    ]
    for name in rewards:
        base.load_role(name, str(folders[name]), head=True)
    return Opened(path, recipe, base, rewards)


def _load_reference(base: SharedBase, recipe: Recipe, path: Path) -> None:
    """Make the reference what the policy was when the last stage that trained it began."""
    trains = [n for n, stage in enumerate(recipe.stages) if not isinstance(stage, RewardModelStage)]
    last = recipe.stages[trains[-1]] if trains else recipe.stages[-1]
    if "policy" in last.init:
        base.load_role(POLICY, last.init["policy"])
    elif trains and trains[-1] > 0:
        before = f"{recipe.stages[trains[-1] - 1].name}-done"
        folder = Checkpoints(path).folder / before / ADAPTERS / POLICY
        if folder.is_dir():
            base.load_role(POLICY, str(folder))
    base.fix_reference()


def reference_is_raw(opened: Opened) -> bool:
    """Whether the policy began as the base itself."""
    return opened.base.adapter_of(REFERENCE) is None
