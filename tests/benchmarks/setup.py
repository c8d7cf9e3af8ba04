"""What our own cases are made of: a recipe on a model folder, the stages that are compared, and a step's figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .measure import median
from .models import prompts, reward


class Quiet:
    """A reporter that keeps the figures."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def stage(self, name: str, total: int) -> None: ...

    def step(self, stage: str, step: int, metrics: Any) -> None:
        if step > 0:
            self.steps.append(dict(metrics))

    def rows(self, what: str, done: int, total: int | None) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


def recipe_of(folder: Path, stages: list[dict[str, Any]], **model: Any) -> Any:
    """A recipe for a model folder."""
    from rlhf_peft.recipe import Recipe

    return Recipe.model_validate(
        {
            "version": 1,
            "name": "bench",
            "output_dir": str(folder / "runs"),
            "device": "auto",
            "model": {"path": str(folder / "model"), "quantization": "nf4", **model},
            "lora": {"r": 16, "alpha": 32},
            "stages": stages,
        }
    )


def registry_of() -> Any:
    """What is built in, and the benchmark's reward."""
    from rlhf_peft.hookspecs import hookimpl
    from rlhf_peft.plugin import Options as NoOptions
    from rlhf_peft.plugin import Scores
    from rlhf_peft.registry import Registry

    class Even:
        """The benchmark's reward."""

        Options = NoOptions
        roles, timeout = (), None

        def __init__(self, options: Any) -> None: ...

        async def score(self, batch: Any) -> Scores:
            return Scores(row=torch.tensor(reward(batch.completion_ids)))

    class Plugin:
        @hookimpl
        def rlhf_peft_register_rewards(self, register: Any) -> None:
            register("even", Even)

    registry = Registry.load(no_plugins=True)
    registry.add(Plugin(), "even", "bench", "1", "a benchmark")
    return registry


def context(folder: Path, stages: list[dict[str, Any]], **model: Any) -> tuple[Any, Quiet]:
    """A run's context on a model folder."""
    from rlhf_peft.api import load_base
    from rlhf_peft.runs import RunFolder
    from rlhf_peft.stages import Context

    recipe, registry = recipe_of(folder, stages, **model), registry_of()
    run = RunFolder.create(recipe.output_dir, recipe.name, overwrite=True)
    reporter = Quiet()
    return Context(recipe, load_base(recipe), registry, run, reporter), reporter


def rl_stage(
    folder: Path, algorithm: dict[str, Any], rewards: list[dict[str, Any]], case: dict[str, Any]
) -> dict[str, Any]:
    """The RL stage that all are compared on."""
    file = folder / "prompts.jsonl"
    rows = prompts(64, case["prompt"])
    file.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    return {
        "stage": "rl",
        "dataset": {"path": str(file)},
        "algorithm": algorithm,
        "sampler": {"name": "cached", "max_new_tokens": case["new"]},
        "rewards": rewards,
        "prompts_per_step": case["prompts"],
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "optimizer": case.get("optimizer", "adamw"),
        "max_steps": case["steps"],
    }


def sft_stage(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """SFT on rows of the same lengths."""
    file = folder / "rows.jsonl"
    rows = zip(prompts(64, case["prompt"]), prompts(64, case["new"], seed=1), strict=True)
    file.write_text("".join(json.dumps({"prompt": p, "completion": " " + c}) + "\n" for p, c in rows))
    return {
        "stage": "sft",
        "dataset": {"path": str(file)},
        "batch_size": case["prompts"] * case["generations"],
        "max_steps": case["steps"],
        "learning_rate": 1e-4,
    }


def step_figures(reporter: Quiet, before: int, top: int) -> dict[str, Any]:
    """Medians of all steps but the first, and the memory that the steps added."""
    steps = reporter.steps[1:]
    return {
        "seconds": median([step["step_time"] for step in steps]),
        "rollout": median([step["time/rollout"] for step in steps]),
        "scoring": median([step["time/scoring"] for step in steps]),
        "update": median([step["time/update"] for step in steps]),
        "peak": top,
        "added": top - before,
        "all": [step["step_time"] for step in reporter.steps],
    }
