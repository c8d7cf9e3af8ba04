"""Checkpoints: where a run stands is noted after every update, written now and then, and restored on resume.

A stage that is resumed first sets itself up as if it were new, and writes nothing meanwhile. Then it takes the state of
its last update. So a state holds what training changes, and nothing that follows from the recipe.

Weights and optimizer state are large, so a snapshot does not copy them. They are valid as they are until the optimizer
takes its next step, and are copied to the CPU only when they are written. The first step of an optimizer after a
snapshot ends that, and a signal that arrives from then on waits for the next snapshot (see `interrupts`).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..engine import REFERENCE, SharedBase
from ..engine.artifacts import HEAD_FILE, read_role
from ..errors import RunFolderError
from ..recipe.schema import StageBase
from ..runs import Checkpoint, Checkpoints, RunFolder
from .interrupts import Interrupts
from .packing import pack, random_state, set_random_state, unpack
from .recipe_changes import Keys, describe
from .snapshots import Copied, Snapshot, read_state, write_state

DONE = "done"
DATASET = "dataset."
"""Begins the names of fingerprints that are known only when their stage begins."""


@dataclass
class Checkpointer:
    """Notes where a run stands, writes checkpoints, and restores them.

    Attributes:
        run: the run's folder.
        base: the base model with its roles.
        on_saved: is called with (stage, step, folder) of each checkpoint.
        results: stage name to what the stage returned.
        interrupts: holds back signals while no snapshot is valid.
        stages: names of the stages that are done.
        replaying: a stage is being set up again, which writes nothing.
    """

    run: RunFolder
    base: SharedBase
    on_saved: Callable[[str, int | str, Path], None]
    results: dict[str, dict[str, Any]]
    interrupts: Interrupts = field(default_factory=Interrupts)
    stages: list[str] = field(default_factory=list)
    replaying: bool = False
    _fingerprints: dict[str, str] = field(default_factory=dict)
    _allowed: Collection[str] = ()
    _changed: Keys = field(default_factory=dict)
    _snapshot: Snapshot | None = None
    """The last one whose roles and optimizer are still as they were."""
    _copy: tuple[Snapshot, Copied] | None = None
    """A copied state that is newer than the stage's newest checkpoint: its beginning, or where it was done again."""
    _newest: Checkpoint | None = None
    """The newest checkpoint of the stage that runs: written or restored by this process."""
    _resumed: Checkpoint | None = None
    _rewound: bool = False
    _begun: str | None = None
    _best: tuple[float, str] | None = None
    _watched: weakref.ref[torch.optim.Optimizer] | None = None

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run."""
        return Checkpoints(self.run.path)

    @property
    def newest_name(self) -> str | None:
        """Name of the newest checkpoint in the run's folder."""
        names = self.checkpoints.names()
        return names[-1] if names else None

    # --- writing ---

    def snapshot(
        self,
        stage: StageBase,
        step: int,
        roles: Sequence[str],
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
        repeatable: bool = False,
    ) -> None:
        """Note that an update is done; raises what a signal asked for meanwhile.

        Args:
            stage: part of the recipe.
            step: number of the update.
            roles: names of the roles that training changes.
            optimizer: over their parameters; its state is part of the snapshot.
            state: all else that training changes, without `optimizer` and `random`.
            metrics: of the update, once it is evaluated and logged: a checkpoint is written if one is due. None: it is
                not logged yet, and the state says what is left to do.
            repeatable: the stage may be done again from here (see `rewind`), so step 0 is copied at once.
        """
        self._note(stage.name, step, roles, optimizer, state, self.stages)
        every = stage.checkpoint.every
        if metrics is not None and every is not None and step > 0 and step % every == 0:
            self.save(stage, metrics)
        elif repeatable and step == 0:
            self._keep_copy()
        self.watch(optimizer)
        self.interrupts.release()

    def stage_done(self, stage: StageBase) -> None:
        """Write the end of a stage; the checkpoints on the way to it are removed."""
        own = [
            role
            for role in self.base.roles.names
            if self.base.roles.adapter_of(role) == role and role != REFERENCE
        ]
        self._note(stage.name, DONE, own, None, {}, [*self.stages, stage.name])
        self.save(stage, {})
        self.stages = [*self.stages, stage.name]
        self._begun = f"{stage.name}-{DONE}"
        self._best = self._newest = self._copy = self._watched = None
        self.interrupts.release()

    def _note(
        self,
        stage: str,
        step: int | str,
        roles: Sequence[str],
        optimizer: torch.optim.Optimizer | None,
        state: Mapping[str, Any],
        stages: list[str],
    ) -> None:
        packed, tensors = pack({**state, "random": random_state()})
        run = self.run
        files = (run.lines(), run.line_hashes(), run.adapters())
        self._snapshot = Snapshot(stage, step, roles, optimizer, packed, tensors, *files, stages)

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """From each of the optimizer's steps to the next snapshot, no snapshot is valid and signals wait."""
        inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        if self._watched is not None and self._watched() is inner:
            return
        self._watched = weakref.ref(inner)

        def invalidate(stepping: Any, *_: Any) -> None:
            if self._watched is not None and self._watched() is stepping:
                self._snapshot = None
                self.interrupts.hold()

        inner.register_step_pre_hook(invalidate)

    def save(self, stage: StageBase | None = None, metrics: Mapping[str, float] | None = None) -> str | None:
        """Write the snapshot unless it is written already, or else a copy that is newer than the newest checkpoint.

        Args:
            stage: prunes its older checkpoints; None: nothing is pruned.
            metrics: of the update, for `keep_best`.

        Returns:
            Name of the newest checkpoint; None: there is none.

        Raises:
            CheckpointError: it cannot be written; the last one stays.
        """
        snapshot, copied = self._copy if self._snapshot is None and self._copy else (self._snapshot, None)
        if snapshot is None or snapshot.saved or not self.run.is_made:
            return self.newest_name
        self.run.sync()
        if stage is not None:
            self._note_best(stage, snapshot, metrics or {})
        info = {
            "stage": snapshot.stage,
            "step": snapshot.step,
            "begun": None if snapshot.step == DONE else self._begun,
            "lines": snapshot.lines,
            "line_hashes": snapshot.line_hashes,
            "artifacts": snapshot.artifacts,
            "stages": snapshot.stages,
            "best": self._best,
            "results": self.results,
            "fingerprints": dict(self._fingerprints),
        }
        contents = copied or snapshot.copy(self.base)
        checkpoint = self.checkpoints.save(snapshot.name, info, lambda folder: write_state(contents, folder))
        snapshot.saved = True
        self._newest, self._copy = checkpoint, None
        self.run.update_manifest(checkpoint=checkpoint.name)
        self.on_saved(snapshot.stage, snapshot.step, checkpoint.path)
        if stage is not None:
            self._prune(stage, snapshot)
        return checkpoint.name

    def _keep_copy(self) -> None:
        """Copy the snapshot now, before the optimizer's next step."""
        if self._snapshot is not None:
            self._copy = (replace(self._snapshot, optimizer=None), self._snapshot.copy(self.base))

    def _note_best(self, stage: StageBase, snapshot: Snapshot, metrics: Mapping[str, float]) -> None:
        """Before it is written, so that a run that is resumed from it knows."""
        name = stage.checkpoint.keep_best
        value = None if name is None else metrics.get(name)
        if value is not None and math.isfinite(value) and (self._best is None or value > self._best[0]):
            self._best = (value, snapshot.name)

    def _prune(self, stage: StageBase, snapshot: Snapshot) -> None:
        settings = stage.checkpoint
        best = None if self._best is None else self._best[1]
        names = [name for name in self.checkpoints.names(stage.name) if name != f"{stage.name}-{DONE}"]
        old = names if snapshot.step == DONE else names[: -settings.keep]
        self.checkpoints.remove([name for name in old if name != best])

    # --- restoring ---

    def require(self, fingerprints: dict[str, str], *, allowed: Collection[str], changed: Keys) -> None:
        """Say what must not change between two parts of a run.

        Args:
            fingerprints: name to digest.
            allowed: names of the fingerprints that may change all the same.
            changed: keys of the recipe that differ from those of the run when it was last written, for messages.
        """
        self._fingerprints, self._allowed, self._changed = fingerprints, allowed, changed

    def resume_from(self, checkpoint: Checkpoint) -> list[str]:
        """Make the base's roles what they were when the checkpoint's stage began; returns the stages that are done.

        Nothing is written. A stage that is resumed in the middle asks for its `stage_state`.

        Raises:
            RunFolderError: something that must not change has changed.
        """
        self._check(checkpoint)
        self.results.update(checkpoint.info["results"])
        done = checkpoint.info["step"] == DONE
        self._begun = checkpoint.name if done else checkpoint.info.get("begun")
        self._resumed = None if done else checkpoint
        self.replaying = not done
        best = checkpoint.info["best"]
        self._best = None if best is None or done else (best[0], best[1])
        stages: list[str] = checkpoint.info["stages"]
        self.stages = stages
        if self._begun is not None:
            begun = self.checkpoints.read(self._begun)
            for folder in sorted((begun.path / "adapters").iterdir()):
                self.base.roles.load(folder.name, str(folder), head=(folder / HEAD_FILE).is_file())
        return stages

    def note_fingerprint(self, name: str, digest: str) -> None:
        """Note the digest of something that the present stage depends on.

        Raises:
            RunFolderError: the stage is resumed in the middle, and the digest was another.
        """
        self._fingerprints[name] = digest
        if self._resumed is not None and name in self._resumed.info["fingerprints"]:
            self._check(self._resumed, [name])

    def _check(self, checkpoint: Checkpoint, names: Sequence[str] | None = None) -> None:
        before = checkpoint.info["fingerprints"]
        if names is None:
            names = sorted(
                (before.keys() | self._fingerprints.keys()) - {n for n in before if n.startswith(DATASET)}
            )
        changed = [name for name in names if before.get(name) != self._fingerprints.get(name)]
        refused = [name for name in changed if name not in self._allowed]
        if refused:
            changes = [
                describe(name, before.get(name), self._fingerprints.get(name), self._changed)
                for name in refused
            ]
            raise RunFolderError(
                f"cannot resume {self.run.path} from {checkpoint.name}: {', '.join(changes)}. Restore what was, or "
                f"accept it by name: --allow-changed {','.join([*self._allowed, *refused])}"
            )

    def rewind(self, stage: StageBase, lines: Mapping[str, int]) -> dict[str, Any] | None:
        """Go back to where a stage that has failed can be done again; returns its state, as `stage_state` does.

        That is the last update where its weights are still there, else the stage's newest checkpoint or its beginning.

        Args:
            stage: part of the recipe.
            lines: bytes of each file of lines when the stage began.

        Returns:
            None where the stage had not come to its first update: it begins, as it did.
        """
        snapshot, newest = self._snapshot, self._resumed or self._newest
        if snapshot is not None and snapshot.stage == stage.name:
            self._keep_copy()
        self._snapshot, self._watched = None, None  # The optimizer's memory is free from here on.
        self._rewound, self._resumed = self._copy is not None, None
        if self._copy is not None:
            lines = self._copy[0].lines
        elif newest is not None and newest.info["stage"] == stage.name:
            self._resumed, lines = newest, newest.info["lines"]
        self.replaying = self._rewound or self._resumed is not None
        self.run.cut(lines)
        return self.stage_state(stage)

    def stage_state(self, stage: StageBase) -> dict[str, Any] | None:
        """The state that a stage goes on from; None: it begins. `restore` is to follow when the stage has taken it."""
        if self._rewound and self._copy is not None:
            copied = self._copy[1]
            # The copy stays as it is: it may be needed again.
            tensors = {name: tensor.clone() for name, tensor in copied.tensors.items()}
            state: dict[str, Any] = unpack(copied.state, tensors)
            return state
        if self._resumed is None or self._resumed.info["stage"] != stage.name:
            return None
        return read_state(self._resumed.path)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Give the trained roles and the random numbers what they were, and write again from here on."""
        if self._rewound and self._copy is not None:
            snapshot, copied = self._copy
            for role, stored in copied.roles.items():
                self.base.roles.fill(role, stored.weights, stored.head, snapshot.name)
        else:
            assert self._resumed is not None
            self._newest = self._resumed
            for folder in sorted((self._newest.path / "adapters").iterdir()):
                self.base.roles.fill(folder.name, *read_role(folder), str(folder))
        self._rewound, self._resumed = False, None
        set_random_state(state["random"])
        self.replaying = False
