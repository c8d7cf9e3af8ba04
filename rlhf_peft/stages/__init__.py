"""The stages of a run, one room each: sft, preference, reward_model, rl."""

from __future__ import annotations

from importlib import import_module

from ..session.checkpointing import Checkpointer
from ..session.context import Context, Reporter, StageRunner, lora_spec, read_source, split_rows
from ..session.fingerprints import fingerprints
from ..session.ranks import Ranks
from ..session.recipe_changes import changed_keys
from .preflight import check_rows, method_of, offline_encoder, usable_rows

_KINDS = ("sft", "preference", "reward_model", "rl")


def runner(kind: str) -> StageRunner:
    """The function that runs a kind of stage; imported when it is needed, for TRL is slow to import."""
    if kind not in _KINDS:
        raise KeyError(kind)
    stage_runner: StageRunner = import_module(f".{kind}", __name__).run
    return stage_runner


__all__ = [
    "Checkpointer",
    "Context",
    "Ranks",
    "Reporter",
    "StageRunner",
    "changed_keys",
    "check_rows",
    "fingerprints",
    "lora_spec",
    "method_of",
    "offline_encoder",
    "read_source",
    "runner",
    "split_rows",
    "usable_rows",
]
