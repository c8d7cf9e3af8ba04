"""Where a run is: remembered at every update, written down now and then, and taken up again.

A stage that is resumed sets itself up as if it were new, with nothing written meanwhile, and then takes the state of
its last update. So a state holds what training changes and nothing that follows from the recipe.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..engine import REFERENCE, SharedBase
from ..engine.artifacts import HEAD_FILE, RoleSnapshot, read_role, write
from ..errors import RunFolderError
from ..recipe.schema import StageBase
from ..runs import Checkpoint, Checkpoints, RunFolder
from .packing import pack, random_state, set_random_state, unpack
from .recipe_changes import Keys, describe

DONE = "done"
LATER = "dataset."
STATE, TENSORS = "state.json", "state.safetensors"


@dataclass(slots=True)
class Moment:
    """A run between two updates.

    Attributes:
        stage: its name.
        step: the last update's number, or "done".
        roles: those that training has changed.
        state: everything else that it has changed, as JSON, and its tensors.
        lines: bytes of each file of lines.
        line_hashes: sha256 of each.
        artifacts: sha256 of each file of an adapter that is written down by then.
        stages: those that are done by then.
        saved: whether it is written down.
    """

    stage: str
    step: int | str
    roles: dict[str, RoleSnapshot]
    state: Any
    tensors: dict[str, Tensor]
    lines: dict[str, int]
    line_hashes: dict[str, str]
    artifacts: dict[str, str]
    stages: list[str]
    saved: bool = False

    @property
    def name(self) -> str:
        """Of its checkpoint."""
        return f"{self.stage}-{self.step}"


@dataclass
class Saver:
    """Remembers and writes down where a run is.

    Attributes:
        run: the run's folder.
        base: with its roles.
        told: is called with (stage, step, folder) of each checkpoint.
        results: stage name to what it returned.
        fingerprints: of what must not change between two parts of a run, name to digest.
        allowed: names of those that may change all the same.
        changed: keys of the recipe that are others than when the run was last written.
        stages: those that are done.
        replaying: a stage is being set up again, which writes nothing.
    """

    run: RunFolder
    base: SharedBase
    told: Callable[[str, int | str, Path], None]
    results: dict[str, dict[str, Any]]
    fingerprints: dict[str, str] = field(default_factory=dict)
    allowed: Collection[str] = ()
    changed: Keys = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    replaying: bool = False
    _moment: Moment | None = None
    _begun: str | None = None
    _resumed: Checkpoint | None = None
    _taken: Checkpoint | None = None
    _back: Moment | None = None
    _best: tuple[float, str] | None = None

    @property
    def checkpoints(self) -> Checkpoints:
        """Of the run."""
        return Checkpoints(self.run.path)

    @property
    def safe(self) -> str | None:
        """The newest checkpoint's name."""
        names = self.checkpoints.names()
        return names[-1] if names else None

    # --- writing ---

    def reached(
        self,
        stage: StageBase,
        step: int,
        total: int,
        roles: Sequence[str],
        state: Callable[[], dict[str, Any]],
        figures: Mapping[str, float],
    ) -> None:
        """An update is done; after the last one the stage's end is to follow, which is written instead.

        Args:
            stage: part of the recipe.
            step: of the update.
            total: updates of the stage.
            roles: that training changes.
            state: gives all else that it changes: tensors and what JSON holds.
            figures: of the update, for `keep_best`.
        """
        if step >= total:
            return
        self._remember(stage.name, step, roles, state(), self.stages)
        settings = stage.checkpoint
        if settings.every is not None and step > 0 and step % settings.every == 0:
            self.save(stage, figures)

    def finished(self, stage: StageBase) -> None:
        """A stage is done: its roles are written down, and what it was on the way is not needed any more."""
        own = [
            role
            for role in self.base.roles.names
            if self.base.roles.adapter_of(role) == role and role != REFERENCE
        ]
        self._remember(stage.name, DONE, own, {}, [*self.stages, stage.name])
        self.save(stage, {})
        self.stages = [*self.stages, stage.name]
        self._begun, self._best = f"{stage.name}-{DONE}", None

    def _remember(
        self, stage: str, step: int | str, roles: Sequence[str], state: dict[str, Any], stages: list[str]
    ) -> None:
        held = {role: self.base.roles.snapshot(role) for role in roles}
        packed, tensors = pack({**state, "random": random_state()})
        run = self.run
        written = (run.lines(), run.line_hashes(), run.adapters())
        self._moment = Moment(stage, step, held, packed, tensors, *written, stages)

    def save(self, stage: StageBase | None = None, figures: Mapping[str, float] | None = None) -> str | None:
        """Write down what is remembered, unless it is already; returns the newest checkpoint's name.

        Raises:
            CheckpointError: it cannot be written; the last one stays.
        """
        moment = self._moment
        if moment is None or moment.saved or not self.run.is_made:
            return self.safe
        self.run.sync()
        if stage is not None:
            self._note_best(stage, moment, figures or {})
        info = {
            "stage": moment.stage,
            "step": moment.step,
            "begun": None if moment.step == DONE else self._begun,
            "lines": moment.lines,
            "line_hashes": moment.line_hashes,
            "artifacts": moment.artifacts,
            "stages": moment.stages,
            "best": self._best,
            "results": self.results,
            "fingerprints": dict(self.fingerprints),
        }
        written = self.checkpoints.save(moment.name, info, lambda folder: _write(moment, folder))
        moment.saved = True
        self.run.update_manifest(checkpoint=written.name)
        self.told(moment.stage, moment.step, written.path)
        if stage is not None:
            self._prune(stage, moment)
        return written.name

    def _note_best(self, stage: StageBase, moment: Moment, figures: Mapping[str, float]) -> None:
        """Before it is written, so that a run that is resumed from it knows."""
        name = stage.checkpoint.keep_best
        value = None if name is None else figures.get(name)
        if value is not None and math.isfinite(value) and (self._best is None or value > self._best[0]):
            self._best = (value, moment.name)

    def _prune(self, stage: StageBase, moment: Moment) -> None:
        settings = stage.checkpoint
        best = None if self._best is None else self._best[1]
        names = [name for name in self.checkpoints.names(stage.name) if name != f"{stage.name}-{DONE}"]
        old = names if moment.step == DONE else names[: -settings.keep]
        self.checkpoints.remove([name for name in old if name != best])

    # --- taking up ---

    def take_up(self, found: Checkpoint) -> list[str]:
        """Make the base's roles what they were when the checkpoint's stage began; returns the stages that are done.

        Nothing is written; a stage that is taken up in the middle asks for its `state`.

        Raises:
            RunFolderError: something that must not change has changed.
        """
        self._check(found)
        self.results.update(found.info["results"])
        done = found.info["step"] == DONE
        self._begun = found.name if done else found.info.get("begun")
        self._resumed = None if done else found
        self.replaying = not done
        best = found.info["best"]
        self._best = None if best is None or done else (best[0], best[1])
        stages: list[str] = found.info["stages"]
        self.stages = stages
        if self._begun is not None:
            begun = self.checkpoints.read(self._begun)
            for folder in sorted((begun.path / "adapters").iterdir()):
                self.base.roles.load(folder.name, str(folder), head=(folder / HEAD_FILE).is_file())
        return stages

    def stands_on(self, name: str, digest: str) -> None:
        """Note what the present stage stands on.

        Raises:
            RunFolderError: the stage is taken up in the middle, and it was another.
        """
        self.fingerprints[name] = digest
        if self._resumed is not None and name in self._resumed.info["fingerprints"]:
            self._check(self._resumed, [name])

    def _check(self, found: Checkpoint, names: Sequence[str] | None = None) -> None:
        before = found.info["fingerprints"]
        if names is None:
            # What a stage stands on is known once it begins.
            names = sorted(
                (before.keys() | self.fingerprints.keys()) - {n for n in before if n.startswith(LATER)}
            )
        changed = [name for name in names if before.get(name) != self.fingerprints.get(name)]
        refused = [name for name in changed if name not in self.allowed]
        if refused:
            told = [
                describe(name, before.get(name), self.fingerprints.get(name), self.changed)
                for name in refused
            ]
            raise RunFolderError(
                f"cannot resume {self.run.path} from {found.name}: {', '.join(told)}. Restore what was, or accept "
                f"it by name: --allow-changed {','.join([*self.allowed, *refused])}"
            )

    def again(self, stage: StageBase, lines: Mapping[str, int]) -> dict[str, Any] | None:
        """Back to the last update of a stage that has failed after it; returns its state, as `state` does.

        Args:
            stage: part of the recipe.
            lines: bytes of each file of lines when the stage began.

        Returns:
            None where it had not come to its first update: it begins, as it did.
        """
        moment, taken = self._moment, self._resumed or self._taken
        if moment is not None and moment.stage == stage.name:
            self._back, self.replaying = moment, True
            self.run.cut(moment.lines)
        elif taken is not None and taken.info["stage"] == stage.name:
            self._resumed, self.replaying = taken, True
            self.run.cut(taken.info["lines"])
        else:
            self.run.cut(lines)
        return self.state(stage)

    def state(self, stage: StageBase) -> dict[str, Any] | None:
        """The state that a stage goes on from; None: it begins. `go_on` is to follow when the stage has taken it."""
        if self._back is not None:
            # What is remembered stays as it is, whatever becomes of this.
            tensors = {name: tensor.clone() for name, tensor in self._back.tensors.items()}
            back: dict[str, Any] = unpack(self._back.state, tensors)
            return back
        found = self._resumed
        if found is None or found.info["stage"] != stage.name:
            return None
        return read_state(found.path)

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Trained roles become what they were, and what is drawn and written from here on follows from there."""
        if self._back is not None:
            for role, held in self._back.roles.items():
                self.base.roles.fill(role, held.weights, held.head, self._back.name)
            self._back = None
        else:
            found, self._resumed = self._resumed, None
            assert found is not None
            self._taken = found
            for folder in sorted((found.path / "adapters").iterdir()):
                self.base.roles.fill(folder.name, *read_role(folder), str(folder))
        set_random_state(state["random"])
        self.replaying = False


def _write(moment: Moment, folder: Path) -> None:
    for role, stored in moment.roles.items():
        write(stored, folder / "adapters" / role)
    (folder / STATE).write_text(json.dumps(moment.state, allow_nan=False), encoding="utf-8")
    save_file(moment.tensors, folder / TENSORS)


def read_state(folder: Path) -> dict[str, Any]:
    """The state that a checkpoint holds.

    Raises:
        RunFolderError: it cannot be read.
    """
    try:
        packed = json.loads((folder / STATE).read_text(encoding="utf-8"))
        state: dict[str, Any] = unpack(packed, load_file(folder / TENSORS))
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"{folder}: its state cannot be read: {error}") from error
    return state
