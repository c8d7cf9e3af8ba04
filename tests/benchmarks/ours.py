"""This package, measured: whole RL steps, rollouts alone, and the log-probability peak."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rlhf_peft.plugin import Request

from .measure import Stopwatch, forget_peak, median, peak, resident, say
from .models import limits, make_model, rows_of
from .setup import Quiet, context, recipe_of, registry_of, rl_stage, sft_stage, step_figures


def grpo(case: dict[str, Any]) -> None:
    """GRPO steps with the KL to the reference in the loss."""
    from rlhf_peft.stages import rl

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        algorithm = {"name": "grpo", "num_generations": case["generations"], "beta": 0.04}
        stages = [rl_stage(folder, algorithm, [{"name": "even"}], case)]
        ctx, reporter = context(folder, stages, tokens_per_forward=case["tokens"])
        before = resident()
        forget_peak()
        rl.run(ctx.recipe.stages[0], ctx)
        say(step_figures(reporter, before, peak()))


def ppo(case: dict[str, Any]) -> None:
    """PPO steps with policy, reference, learned reward and value."""
    from rlhf_peft.stages import rl

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        algorithm = {
            "name": "ppo",
            "num_generations": case["generations"],
            "num_epochs": case.get("epochs", 1),
            "value": case["value"],
        }
        stages = [rl_stage(folder, algorithm, [{"name": "learned"}], case)]
        ctx, reporter = context(
            folder,
            stages,
            tokens_per_forward=case["tokens"],
            merge_rollouts=case.get("merge"),
        )
        ctx.base.roles.add("reward-0", head=True)
        before = resident()
        forget_peak()
        rl.run(ctx.recipe.stages[0], ctx)
        say(step_figures(reporter, before, peak()))


def rollout(case: dict[str, Any]) -> None:
    """Completions alone, with the default sampler; the weights are merged within the time."""
    from rlhf_peft.session.policy_view import BaseView

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        ctx, _ = context(
            folder, [rl_stage(folder, {"name": "grpo"}, [{"name": "even"}], {**case, "steps": 1})]
        )
        sampler = ctx.registry.make("samplers", "cached", {"max_new_tokens": case["new"]})
        view = BaseView(ctx.base)
        if case.get("ends"):
            view.eos_ids = frozenset(range(4, 4 + case["ends"]))
        before = resident()
        forget_peak()
        speeds = []
        for turn in range(case["steps"]):
            asked = [
                Request(
                    torch.tensor(ids),
                    i // case["generations"],
                    1000 * turn + i,
                    dataclasses.replace(sampler.params, max_new_tokens=most),
                )
                for i, (ids, most) in enumerate(
                    zip(rows_of(ctx.base.tokenizer, case), limits(case), strict=True)
                )
            ]
            watch = Stopwatch()
            sampler.sync(view, turn)
            drawn = sampler.sample(asked)
            speeds.append(int(drawn.completion_lengths.sum()) / watch.seconds)
        say(
            {"tokens_per_second": median(speeds[1:]), "added": peak() - before, "peak": peak(), "all": speeds}
        )


def sft(case: dict[str, Any]) -> None:
    """QLoRA SFT steps on as many tokens as an RL step trains on."""
    from rlhf_peft.stages import sft as stage

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        ctx, reporter = context(folder, [sft_stage(folder, case)], tokens_per_forward=case["tokens"])
        before = resident()
        forget_peak()
        stage.run(ctx.recipe.stages[0], ctx)
        say({"peak": peak(), "added": peak() - before, "steps": len(reporter.steps)})


def flat(case: dict[str, Any]) -> None:
    """Many steps of one size: seconds and memory at the beginning and at the end.

    Seconds of the processor on one thread, in units of a fixed product timed after each step: what the steps cost, and
    not what else the machine does meanwhile.
    """
    from rlhf_peft.stages import rl

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", hidden_size=128, intermediate_size=384, num_hidden_layers=2)
        algorithm = {"name": "grpo", "num_generations": case["generations"], "beta": 0.04}
        stages = [rl_stage(folder, algorithm, [{"name": "even"}], case)]
        ctx, reporter = context(folder, stages, tokens_per_forward=2048)
        held: list[int] = []
        seconds: list[float] = []
        units: list[float] = []
        square = torch.randn(256, 256)
        begun = time.process_time()

        def step(stage: str, number: int, metrics: Any) -> None:
            nonlocal begun
            now = time.process_time()
            for _ in range(40):
                square @ square
            after = time.process_time()
            if number > 0:
                held.append(resident())
                seconds.append(now - begun)
                units.append(after - now)
            begun = time.process_time()

        reporter.step = step  # type: ignore[method-assign]
        rl.run(ctx.recipe.stages[0], ctx)
        tokens = case["prompts"] * case["generations"] * case["new"]
        unit = median(units)
        say(
            {
                "seconds a token": median(seconds[5:]) / tokens,
                "units a token": median(seconds[5:]) / median(units[5:]) / tokens,
                "seconds 20 to 40": unit * median(seconds[20:40]) / median(units[20:40]),
                "seconds at the end": unit * median(seconds[-20:]) / median(units[-20:]),
                "product": unit,
                "memory 20 to 40": median([float(x) for x in held[20:40]]),
                "memory at the end": median([float(x) for x in held[-20:]]),
            }
        )


def plan(case: dict[str, Any]) -> None:
    """What `plan` says and what `bench` measures, phase by phase: of the whole process, its libraries included."""
    import psutil

    from rlhf_peft.planning.bench import bench
    from rlhf_peft.planning.forecast import forecast

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        if case["algorithm"] is None:
            stage = sft_stage(folder, case)
        else:
            options = {"num_generations": case["generations"], **case["algorithm"]}
            rewards = [{"name": "learned" if options["name"] == "ppo" else "even"}]
            stage = rl_stage(folder, options, rewards, case)
        model = {"tokens_per_forward": case["tokens"], **case.get("model", {})}
        recipe, registry = recipe_of(folder, [stage], **model), registry_of()
        said = {phase.name: phase.total for phase in forecast(recipe, registry).plan.phases}
        before = psutil.Process().memory_info().rss
        found = {
            phase: None if took.peak is None else took.peak + before
            for phase, took in bench(recipe, registry, Quiet(), steps=case["steps"]).phases.items()
        }
        say(
            {
                "planned": max(said[phase] for phase in found),
                "measured": max(peak for peak in found.values() if peak is not None),
                **{f"planned {phase}": said[phase] for phase in found},
                **{f"measured {phase}": found[phase] for phase in found},
            }
        )


def logps(case: dict[str, Any]) -> None:
    """Peak of log-probabilities, forward and backward, over a vocabulary of 151,646."""
    from rlhf_peft.maths import token_logprobs

    width, vocabulary = 256, 151_646
    hidden = torch.randn(case["rows"], width, requires_grad=True)
    weight = torch.randn(vocabulary, width) / 16
    targets = torch.randint(vocabulary, (case["rows"],))
    before = resident()
    forget_peak()
    token_logprobs(hidden, weight, targets, chunk=case["chunk"])[0].sum().backward()
    say({"added": peak() - before, "chunk bytes": 4 * case["chunk"] * vocabulary})


CASES = {
    "grpo": grpo,
    "ppo": ppo,
    "rollout": rollout,
    "sft": sft,
    "flat": flat,
    "logps": logps,
    "plan": plan,
}
