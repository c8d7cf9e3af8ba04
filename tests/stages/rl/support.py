"""A small RL stage on the shipped model, and what two runs of it must have in common."""

import json

import pytest
import torch

from rlhf_peft.hookspecs import hookimpl
from rlhf_peft.plugin import Options, Scores
from rlhf_peft.recipe.schema import RewardEntry
from rlhf_peft.stages import rl

PROMPTS = {"name": "tiny", "part": "prompts", "size": 32}
HELD = {"name": "tiny", "part": "prompts", "questions": "test", "size": 8}


def stage(**changes):
    algorithm = {
        "name": "ppo",
        "num_epochs": 2,
        "num_minibatches": 2,
        "value": "policy",
        **changes.pop("algorithm", {}),
    }
    return {
        "stage": "rl",
        "dataset": PROMPTS,
        "algorithm": algorithm,
        "sampler": {"name": "cached", "max_new_tokens": 16},
        "rewards": [{"name": "tiny-gold"}],
        "prompts_per_step": 8,
        "learning_rate": 1e-3,
        # Runs are compared up to rounding; with 1e-8 a gradient that is nothing but rounding would move its weight.
        "adam_epsilon": 1e-5,
        "max_steps": 2,
        "eval": {"dataset": HELD},
        **changes,
    }


def run(ctx):
    return rl.run(ctx.recipe.stages[-1], ctx)


def algorithm_of(ctx):
    """The algorithm of the last stage, made anew."""
    section = ctx.recipe.stages[-1].algorithm
    return ctx.registry.make("algorithms", section.name, section.options)


def logged(ctx):
    return [json.loads(line) for line in (ctx.run.path / "metrics.jsonl").read_text().splitlines()]


class Coarse:
    """Scores that are all equal in every other group."""

    roles, timeout = (), None
    Options = Options

    def __init__(self, options): ...

    async def score(self, batch):
        odd = batch.rollout.group % 2
        return Scores(row=torch.arange(len(batch)).float() * odd)

    class Plugin:
        @hookimpl
        def rlhf_peft_register_rewards(self, register):
            register("coarse", Coarse)


def with_coarse(make_context, **changes):
    ctx = make_context({**stage(eval={}, prompts_per_step=4, max_steps=2), **changes})
    ctx.registry.add(Coarse.Plugin(), "coarse", "tests", "1", "a test")
    ctx.recipe.stages[-1] = ctx.recipe.stages[-1].model_copy(
        update={"rewards": [RewardEntry.model_validate({"name": "coarse"})]}
    )
    return ctx


def outcome_of(ctx):
    """Adapter and figures after a run."""
    run(ctx)
    lines = [
        {k: v for k, v in line.items() if "time" not in k and "per_second" not in k} for line in logged(ctx)
    ]
    return {n: p.detach().clone() for n, p in ctx.base.model.named_parameters() if ".policy." in n}, lines


def same(first, second):
    """Two outcomes, up to rounding."""
    for name, weight in first[0].items():
        assert torch.allclose(weight, second[0][name], atol=1e-6), name
    for mine, theirs in zip(first[1], second[1], strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {"stage"}:
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), key
