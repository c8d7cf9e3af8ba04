"""A run without a recipe file: a model of one layer, the real registry and run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_peft.engine import POLICY, BaseSpec, LoraSpec, SharedBase
from rlhf_peft.recipe.schema import Recipe
from rlhf_peft.registry import Registry
from rlhf_peft.runs import RunFolder
from rlhf_peft.session.context import Context

from ..quantizers import held_as
from ..small_model import one_layer

THINGS = ("fox", "bear", "duck", "frog", "owl", "hare")


class Remembering:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.steps: list[tuple[str, int, dict[str, float]]] = []

    def stage(self, name: str, total: int) -> None:
        self.stages.append((name, total))

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append((stage, step, dict(metrics)))

    def rows(self, what: str, done: int, total: int | None) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MakeContext = Callable[..., Context]

_BASES: dict[tuple[Any, ...], tuple[SharedBase, dict[str, torch.Tensor]]] = {}


def policy_of(base: SharedBase) -> dict[str, torch.Tensor]:
    """A copy of the policy's adapter."""
    return {name: p.detach().clone() for name, p in base.model.named_parameters() if f".{POLICY}." in name}


def begin_again(base: SharedBase, policy: Mapping[str, torch.Tensor]) -> SharedBase:
    """The base with no role but the policy, and that as it was."""
    # pytest before 9 leaves the method of the class on an instance whose method a test has replaced.
    for name in [name for name in vars(base) if callable(getattr(type(base), name, None))]:
        delattr(base, name)
    for role in [role for role in base.roles.names if role != POLICY]:
        base.roles.remove(role)
    parameters = dict(base.model.named_parameters())
    with torch.no_grad():
        for name, value in policy.items():
            parameters[name].copy_(value)
    return base


def shared_base(model: Any, lora: Any, seed: int) -> SharedBase:
    """A base; loaded once for each model and shape."""
    checkpointing = model.gradient_checkpointing
    dtype = model.compute_dtype
    key = (model.path, str(model.quantization), dtype, checkpointing, model.max_length, repr(lora), seed)
    if key not in _BASES:
        made = SharedBase(
            BaseSpec(
                model.path,
                **held_as(model.quantization.name, **model.quantization.options),
                compute_dtype=dtype,
                device="cpu",
            ),
            LoraSpec(r=lora.r, alpha=lora.alpha, dropout=lora.dropout),
            seed=seed,
            max_length=model.max_length,
            gradient_checkpointing=checkpointing,
        )
        _BASES[key] = made, policy_of(made)
    base = begin_again(*_BASES[key])
    return base


@pytest.fixture
def make_context(tmp_path: Path) -> MakeContext:
    """Context of a run with these stages; `model` and `lora` change the recipe."""

    def make(*stages: Mapping[str, Any], **changes: Mapping[str, Any]) -> Context:
        model = {"path": one_layer(), "max_length": 64, **changes.get("model", {})}
        lora = {"r": 4, "alpha": 8.0, **changes.get("lora", {})}
        recipe = Recipe.model_validate(
            {"version": 1, "name": "run", "model": model, "lora": lora, "stages": [dict(s) for s in stages]}
        )
        base = shared_base(recipe.model, recipe.lora, recipe.seed)
        run = RunFolder.create(tmp_path / "runs", recipe.name, overwrite=True)
        return Context(recipe, base, Registry.load(no_plugins=True), run, Remembering())

    return make


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@pytest.fixture
def demonstrations(tmp_path: Path) -> str:
    """24 prompt-completion rows of plain text."""
    rows = [
        {"prompt": f"Tell me about the {THINGS[i % 6]}.", "completion": f" The {THINGS[i % 6]} is happy."}
        for i in range(24)
    ]
    return write(tmp_path / "demonstrations.jsonl", rows)


@pytest.fixture
def conversations(tmp_path: Path) -> str:
    """24 conversations of two turns each."""
    rows = [
        {
            "messages": said("user", f"Who is the {THINGS[i % 6]}?")
            + said("assistant", f"The {THINGS[i % 6]} is my friend.")
            + said("user", "Is it kind?")
            + said("assistant", "It is kind.")
        }
        for i in range(24)
    ]
    return write(tmp_path / "conversations.jsonl", rows)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    """24 preferences, conversational."""
    rows = [
        {
            "prompt": said("user", f"Tell me about the {THINGS[i % 6]}."),
            "chosen": said("assistant", f"The {THINGS[i % 6]} is happy."),
            "rejected": said("assistant", f"The {THINGS[(i + 1) % 6]} is sad and lost."),
        }
        for i in range(24)
    ]
    return write(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    """24 rows with a label, plain."""
    rows = [
        {
            "prompt": f"Tell me about the {THINGS[i % 6]}.",
            "completion": " It is happy." if i % 2 else " It is sad and lost.",
            "label": bool(i % 2),
        }
        for i in range(24)
    ]
    return write(tmp_path / "labelled.jsonl", rows)
