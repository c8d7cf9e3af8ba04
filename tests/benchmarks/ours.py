"""This package, measured: whole RL steps, rollouts alone, and the log-probability peak."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rlhf_peft.errors import RlhfPeftError
from rlhf_peft.plugin import Request

from .measure import Stopwatch, cap, forget_peak, median, peak, resident, say
from .models import limits, make_model, prompts, reward, rows_of


class Quiet:
    """A reporter that keeps the figures."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def stage(self, name: str, total: int) -> None: ...

    def step(self, stage: str, step: int, metrics: Any) -> None:
        if step > 0:
            self.steps.append(dict(metrics))

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
        roles, scope, timeout = (), "row", None

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


def grpo(case: dict[str, Any]) -> None:
    """GRPO steps with the KL to the reference in the loss."""
    from rlhf_peft.stages import rl

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", size=case.get("size", "34M"))
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
        make_model(folder / "model", size=case.get("size", "34M"))
        algorithm = {
            "name": "ppo",
            "num_generations": case["generations"],
            "num_epochs": case.get("epochs", 1),
            "value": case["value"],
        }
        stages = [rl_stage(folder, algorithm, [{"name": "learned"}], case)]
        cap(case)
        ctx, reporter = context(
            folder,
            stages,
            tokens_per_forward=case["tokens"],
            merge_rollouts=case.get("merge"),
            gradient_checkpointing=case.get("recompute", False),
        )
        ctx.base.add_role("reward-0", head=True)
        before = resident()
        forget_peak()
        rl.run(ctx.recipe.stages[0], ctx)
        say(step_figures(reporter, before, peak()))


def longest(case: dict[str, Any]) -> None:
    """The longest completion, in doubling steps, with which PPO steps fit under the cap."""
    fitted = 0
    while fitted < case["most"]:
        new = max(256, 2 * fitted)
        try:
            ppo({**case, "new": new})
        except (torch.OutOfMemoryError, RlhfPeftError):
            break
        fitted = new
    say({"new": fitted})


def bandwidth(case: dict[str, Any]) -> None:
    """Bytes a second that decoding one row reads, as a share of what a copy reads and writes."""
    from rlhf_peft.stages.view import BaseView

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", size=case["size"])
        ctx, _ = context(
            folder, [rl_stage(folder, {"name": "grpo"}, [{"name": "even"}], {**case, "steps": 1})]
        )
        sampler = ctx.registry.make("samplers", "cached", {"max_new_tokens": case["new"]})
        sampler.sync(BaseView(ctx.base), 0)
        asked = [
            Request(torch.tensor(ids), 0, i, sampler.params)
            for i, ids in enumerate(rows_of(ctx.base.tokenizer, case))
        ]
        with ctx.base.decoder("policy") as model:
            weights = sum(p.nbytes for p in model.parameters())
        sampler.sample(asked)
        watch = Stopwatch()
        count = int(sampler.sample(asked).completion_lengths.sum())
        seconds = watch.seconds
        shape = ctx.base.lm.config
        each = (
            2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * ctx.base.dtype.itemsize
        )
        read = count * (weights + each * (case["prompt"] + case["new"] // 2))
        data = torch.empty(2**28, dtype=torch.uint8, device=ctx.base.device)
        data.clone()
        copying = Stopwatch()
        for _ in range(10):
            data.clone()
        copied = 20 * data.nbytes / copying.seconds
        say({"read": read / seconds, "copied": copied, "share": read / seconds / copied})


def rollout(case: dict[str, Any]) -> None:
    """Completions alone, with the default sampler; the weights are merged within the time."""
    from rlhf_peft.stages.view import BaseView

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", size=case.get("size", "34M"))
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
        make_model(folder / "model", size=case.get("size", "34M"))
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
    """What `plan` says and what `bench` measures, phase by phase.

    The C library's allocator keeps what lies between pieces in use; with a fixed threshold pieces of 128 KB and more go
    back to the system when they are freed, and the resident size is what is in use.
    """
    import ctypes

    from rlhf_peft.planning.bench import bench
    from rlhf_peft.planning.forecast import forecast

    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 128 * 1024)
    libc.mallopt(-1, 128 * 1024)
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
        found = {
            phase: took.peak
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
    "longest": longest,
    "bandwidth": bandwidth,
}
