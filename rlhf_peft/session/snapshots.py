"""A run between two updates, and what is written of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..engine import SharedBase
from ..engine.artifacts import RoleSnapshot
from ..engine.artifacts import write as write_role
from ..errors import RunFolderError
from .packing import pack, unpack

STATE, TENSORS = "state.json", "state.safetensors"


@dataclass(slots=True)
class Copied:
    """What a snapshot writes: copies on the CPU.

    Attributes:
        roles: adapters and heads of the roles that training changes.
        state: everything else that training changes, as JSON.
        tensors: the tensors that `state` names.
    """

    roles: dict[str, RoleSnapshot]
    state: Any
    tensors: dict[str, Tensor]


@dataclass(slots=True)
class Snapshot:
    """A run between two updates.

    Attributes:
        stage: its name.
        step: number of the last update, or "done".
        roles: names of the roles that training changes.
        optimizer: over their parameters; None where the stage is done.
        state: all else that training changes, as JSON.
        tensors: the tensors that `state` names, copied.
        lines: bytes of each file of lines, such as metrics.jsonl.
        line_hashes: sha256 of each of these files.
        artifacts: sha256 of each adapter file that is written by then.
        stages: names of the stages that are done by then.
        saved: whether it is written.
    """

    stage: str
    step: int | str
    roles: Sequence[str]
    optimizer: torch.optim.Optimizer | None
    state: Any
    tensors: dict[str, Tensor]
    lines: dict[str, int]
    line_hashes: dict[str, str]
    artifacts: dict[str, str]
    stages: list[str]
    saved: bool = False

    @property
    def name(self) -> str:
        """Name of its checkpoint."""
        return f"{self.stage}-{self.step}"

    def copy(self, base: SharedBase) -> Copied:
        """Copies of the state, of the optimizer's state and of the roles. They must not have changed meanwhile."""
        state = unpack(self.state, self.tensors)
        if self.optimizer is not None:
            state["optimizer"] = self.optimizer.state_dict()
        packed, tensors = pack(state)
        return Copied({role: base.roles.snapshot(role) for role in self.roles}, packed, tensors)


def write_state(copied: Copied, folder: Path) -> None:
    """Write the contents of a checkpoint into an empty folder."""
    for role, stored in copied.roles.items():
        write_role(stored, folder / "adapters" / role)
    (folder / STATE).write_text(json.dumps(copied.state, allow_nan=False), encoding="utf-8")
    save_file(copied.tensors, folder / TENSORS)


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
