"""A small pipeline, run whole or in pieces, and what must be the same in the end."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

from rlhf_peft import api
from rlhf_peft.recipe import load
from rlhf_peft.registry import Registry

from ..small_model import one_layer

TIMES = ("time", "step_time", "tokens_per_second")


def pipeline(folder: Path, name: str = "run", **stages: dict[str, Any]) -> Any:
    """SFT with gradient accumulation, an ensemble of two rewards, and PPO that uses each rollout twice."""
    data = {"name": "tiny", "size": 24}
    sft = {
        "stage": "sft",
        "dataset": {**data, "part": "demonstrations"},
        "batch_size": 8,
        "max_steps": 4,
        "eval": {"every": 2, "dataset": {**data, "part": "demonstrations", "questions": "test", "size": 4}},
    }
    reward = {
        "stage": "reward_model",
        "dataset": {**data, "part": "preferences"},
        "batch_size": 8,
        "max_steps": 3,
        "ensemble": 2,
        "normalize": "standardize",
    }
    rl = {
        "stage": "rl",
        "dataset": {**data, "part": "prompts"},
        "algorithm": {
            "name": "ppo",
            "num_epochs": 2,
            "num_minibatches": 2,
            "value": "own",
            "kl_target": 3.0,
        },
        "sampler": {"name": "cached", "max_new_tokens": 8},
        "rewards": [{"name": "learned", "reduce": "min", "normalize": "running"}, {"name": "tiny-gold"}],
        "prompts_per_step": 10,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "eval": {"every": 2, "dataset": {**data, "part": "prompts", "questions": "test", "size": 4}},
    }
    chosen = {"sft": sft, "reward_model": reward, "rl": rl}
    for key, changes in stages.items():
        chosen[key] = {**chosen[key], **changes}
    every = {"checkpoint": {"every": 1, "keep": 2}}
    return load(
        {
            "version": 1,
            "name": name,
            "output_dir": str(folder),
            "device": "cpu",
            "model": {"path": one_layer(), "max_length": 64, "tokens_per_forward": 256},
            "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
            "stages": [{**every, **stage} for stage in chosen.values()],
        },
        (),
        plugins=Registry.load(no_plugins=True),
    )


class Interrupts:
    """A reporter that interrupts the run as it is told of its n-th update."""

    def __init__(self, after: int | None = None) -> None:
        self.left = after

    def stage(self, name: str, total: int) -> None: ...

    def step(self, stage: str, step: int, metrics: Any) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    def rows(self, what: str, done: int, total: int | None) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


def run(recipe: Any, *, after: int | None = None, **options: Any) -> Any:
    """Run it in this process, with random numbers that have nothing to do with the run's."""
    import numpy
    import torch

    random.seed(), numpy.random.seed(None), torch.seed()
    registry = Registry.load(no_plugins=True)
    return api.run(recipe, registry=registry, reporter=Interrupts(after), **options)


def preferences(folder: Path, method: str, every: int | None = 1, dropout: float = 0.1) -> Any:
    """SFT, then DPO or KTO with the SFT policy as reference, gradient accumulation in both."""
    data = {"name": "tiny", "size": 24}
    evaluation = {"every": 2, "dataset": {**data, "part": "preferences", "questions": "test", "size": 4}}
    return load(
        {
            "version": 1,
            "name": "run",
            "output_dir": str(folder),
            "device": "cpu",
            "model": {"path": one_layer(), "max_length": 64, "tokens_per_forward": 256},
            "lora": {"r": 4, "alpha": 8, "dropout": dropout},
            "stages": [
                {
                    "stage": "sft",
                    "dataset": {**data, "part": "demonstrations"},
                    "batch_size": 8,
                    "max_steps": 1,
                },
                {
                    "stage": "preference",
                    "method": method,
                    "dataset": {**data, "part": "preferences"},
                    "batch_size": 8,
                    "max_steps": 5,
                    "learning_rate": 1e-3,
                    "eval": evaluation,
                    "checkpoint": {"every": every, "keep": 2},
                },
            ],
        },
        (),
        plugins=Registry.load(no_plugins=True),
    )


class Dies:
    """Kills this process as it is about to touch a file of the run for the n-th time.

    Files are opened, renamed, cut and removed in the middle of saves, and of nothing else that matters.
    """

    EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.mkdir", "shutil.rmtree")

    def __init__(self, folder: Path, at: int) -> None:
        self.folder, self.at, self.count = str(folder), at, 0
        sys.addaudithook(self)

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if (
            event in self.EVENTS
            and isinstance(given[0], str | Path)
            and str(given[0]).startswith(self.folder)
        ):
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


def ended(folder: Path) -> dict[str, Any]:
    """What a run leaves behind, without its times: lines as they are, files as bytes."""
    left: dict[str, Any] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        figures = json.loads(line)
        key = f"{figures['stage']} {figures['step']}"
        assert key not in left, f"{key} is there twice"
        left[key] = {k: v for k, v in figures.items() if k.split("/")[0] not in TIMES}
    samples = folder / "samples.jsonl"
    left["samples"] = samples.read_text().splitlines() if samples.exists() else []
    for file in sorted((folder / "adapters").rglob("*")):
        if file.is_file():
            left[file.relative_to(folder).as_posix()] = file.read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    return {**left, "stages": manifest["stages_done"], "status": manifest["status"]}


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Assert that two runs ended alike, naming what differs."""
    assert list(ours) == list(theirs)
    for key in ours:
        assert ours[key] == theirs[key], f"{key} differs"
