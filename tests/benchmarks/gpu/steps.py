"""Whole steps of PPO and GRPO, and TRL's beside them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from ..measure import median
from ..setup import context, rl_stage
from .cases import Sizes
from .memory import Memory, capped


def ppo(folder: Path, sizes: Sizes, options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Steps as the recipe rlhf-8gb has them: four epochs, the value head on the reward trunk, recomputed."""
    algorithm = {
        "name": "ppo",
        "beta": 0.05,
        "num_epochs": 4,
        "num_minibatches": 4,
        "value": "reward",
    }
    return _steps(folder, sizes, options, device, algorithm, "learned", gradient_checkpointing=True)


def grpo(folder: Path, sizes: Sizes, options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Steps of four completions a prompt, with the KL to the reference in the loss."""
    algorithm = {"name": "grpo", "num_generations": 4, "beta": 0.04}
    return _steps(folder, sizes, options, device, algorithm, "even")


def trl_grpo(folder: Path, sizes: Sizes, options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The same steps by TRL."""
    from ..trl_grpo import measured

    memory = Memory(device)
    case = {
        "folder": str(folder),
        "prompts": max(1, sizes.prompts // 4),
        "generations": 4,
        "prompt": sizes.prompt,
        "new": sizes.completion,
        "steps": sizes.steps,
        "micro": min(options["micro"], 4 * max(1, sizes.prompts // 4)),
    }
    return {**measured(case), **memory.figures()}


def _steps(
    folder: Path,
    sizes: Sizes,
    options: dict[str, Any],
    device: torch.device,
    algorithm: dict[str, Any],
    reward: str,
    **model: Any,
) -> dict[str, Any]:
    from rlhf_peft.stages import rl

    each = algorithm.get("num_generations", 1)
    case = {
        "prompt": sizes.prompt,
        "new": sizes.completion,
        "prompts": max(1, min(options.get("prompts", sizes.prompts), sizes.prompts) // each),
        "steps": options.get("steps", sizes.steps),
        "optimizer": "adamw_8bit" if device.type == "cuda" else "adamw",
    }
    tokens = options.get("tokens", 4096)
    with tempfile.TemporaryDirectory() as name, capped(device, options.get("cap")):
        stage = rl_stage(Path(name), algorithm, [{"name": reward}], case)
        ctx, reporter = context(Path(name), [stage], path=str(folder), tokens_per_forward=tokens, **model)
        if reward == "learned":
            ctx.base.roles.add("reward-0", head=True)
        memory = Memory(device)
        rl.run(ctx.recipe.stages[0], ctx)
        counted = reporter.steps[1:] or reporter.steps
        keys = {"seconds": "step_time"} | {
            f"seconds of {x}": f"time/{x}" for x in ("rollout", "scoring", "update")
        }
        return {
            **{name: median([step[key] for step in counted]) for name, key in keys.items()},
            "rows": case["prompts"] * each,
            "all": [step["step_time"] for step in reporter.steps],
            **memory.figures(),
        }
