"""What a card would do, by the roofline of the dry run: with the plain ways alone, and as it is.

Nothing here ran on a GPU. A kernel takes as long as its bytes or operations take at the card's rates, at least 2
microseconds, and the host takes 8 to launch one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_peft.planning.cards import card_of
from rlhf_peft.planning.exact.extrapolate import Measured
from rlhf_peft.planning.exact.plan import Wanted, measured
from rlhf_peft.planning.forecast import planned
from rlhf_peft.recipe import load
from rlhf_peft.registry import Registry
from tests.planning.models import write_model

PROMPT, NEW = 512, 256
WAYS = {"plain ways": False, "now": True}
"""Name of a column to the recipe's `model.fast`."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table.

    Attributes:
        what: is measured.
        goal: as text.
        recipes: that it needs, as documents without `model.fast`.
        figure: from the phases of each recipe to the text of a cell.
    """

    what: str
    goal: str
    recipes: tuple[dict[str, Any], ...]
    figure: Callable[..., str]


def recipe(stage: dict[str, Any], size: str, tokens: int, **model: Any) -> dict[str, Any]:
    """A recipe of one stage on a model of a size."""
    return {
        "version": 1,
        "name": "simulated",
        "model": {"path": size, "tokens_per_forward": tokens, "max_length": PROMPT + NEW, **model},
        "stages": [stage],
    }


def rollout(size: str, rows: int, new: int) -> dict[str, Any]:
    """A step whose rollout has so many rows, each of its own prompt."""
    stage = {
        "stage": "rl",
        "dataset": {"path": "not/read"},
        "algorithm": {"name": "ppo", "value": "policy", "num_epochs": 1, "num_minibatches": 1},
        "sampler": {"name": "cached", "max_rows": rows, "max_new_tokens": new},
        "rewards": [{"name": "length", "target": 8}],
        "prompts_per_step": rows,
        "max_steps": 1,
    }
    return recipe(stage, size, 8192, max_length=PROMPT + new)


def decoding(size: str, rows: int, goal: str) -> Line:
    """Tokens a second of decoding alone: the reading of the prompts cancels out."""
    short = NEW // 4

    def figure(long: list[Measured], brief: list[Measured]) -> str:
        seconds = _phase(long, "rollout").seconds - _phase(brief, "rollout").seconds
        return f"{rows * (NEW - short) / seconds:,.0f} tokens/s"

    what = f"{size}, 4-bit decoding, {rows} row{'s' * (rows > 1)}"
    return Line(what, goal, (rollout(size, rows, NEW), rollout(size, rows, short)), figure)


def _phase(phases: list[Measured], name: str) -> Measured:
    return next(phase for phase in phases if phase.name == name)


def step() -> Line:
    """A PPO step of the recipe rlhf-8gb."""
    whole = load("rlhf-8gb", ()).model_dump(mode="json", exclude_none=True)
    whole["model"]["path"] = "1.7B"
    # Its reward model is there, and need not be trained.
    whole["stages"] = [{**whole["stages"][-1], "init": {"reward": "some/reward"}, "eval": {}}]
    names = ("rollout", "scoring", "update")

    def figure(phases: list[Measured]) -> str:
        each = [_phase(phases, name).seconds for name in names]
        parts = " + ".join(f"{seconds:.1f}" for seconds in each)
        return f"{sum(each):.1f} s ({parts})"

    return Line("PPO step of rlhf-8gb (32 x 512 + 256, 4 epochs)", "32 s", (whole,), figure)


def activations() -> Line:
    """What a token keeps for the backward pass in a layer, by two numbers of tokens in one SFT step."""

    def sft(tokens: int) -> dict[str, Any]:
        stage = {"stage": "sft", "dataset": {"path": "not/read"}, "batch_size": 2, "max_steps": 1}
        return recipe(stage, "1.7B", 2 * tokens, max_length=tokens)

    def figure(many: list[Measured], few: list[Measured]) -> str:
        kept = (many[0].peak - few[0].peak) / (2 * (1024 - 512)) / 28
        return f"{kept / 1024:.1f} KiB"

    return Line(
        "update, activations a token a layer, 1.7B, without recomputation",
        "0.58 of the plain ways",
        (sft(1024), sft(512)),
        figure,
    )


def waits() -> Line:
    """How often the host waits for the card a decoded token."""
    short = NEW // 4

    def figure(long: list[Measured], brief: list[Measured]) -> str:
        count = _phase(long, "rollout").reads - _phase(brief, "rollout").reads
        return f"{count / (NEW - short):.3f}"

    return Line(
        "waits of the host a decoded token",
        "0.125",
        (rollout("1.7B", 32, NEW), rollout("1.7B", 32, short)),
        figure,
    )


def lines() -> list[Line]:
    """All lines of the table."""
    return [
        decoding("1.7B", 1, "250 tokens/s"),
        decoding("1.7B", 32, "3,500 tokens/s"),
        decoding("8B", 1, "95 tokens/s"),
        decoding("8B", 32, "1,800 tokens/s"),
        step(),
        activations(),
        waits(),
    ]


def table(card: str, only: str = "") -> str:
    """The table for a card, in Markdown.

    Raises:
        UsageError: a dry run is not possible here, or the card's speed is not known.
        RuntimeError: a recipe could not be measured.
    """
    registry, chosen = Registry.load(no_plugins=True), [x for x in lines() if only.lower() in x.what.lower()]
    with tempfile.TemporaryDirectory() as name:
        wanted: dict[tuple[int, str, int], Wanted] = {}
        for number, each in enumerate(chosen):
            for way, fast in WAYS.items():
                for i, document in enumerate(each.recipes):
                    path = write_model(Path(name), document["model"]["path"])
                    model = {**document["model"], "path": str(path), "fast": fast}
                    loaded = load({**document, "model": model}, (), plugins=registry)
                    wanted[number, way, i] = Wanted(loaded, planned(loaded, registry, card)[0])
        results = measured(list(wanted.values()), registry, card_of(card)[0], no_plugins=True)
    found = dict(zip(wanted, results, strict=True))
    rows = [f"| {card} | {' | '.join(WAYS)} | goal |", "|---|---|---|---|"]
    for number, each in enumerate(chosen):
        cells = []
        for way in WAYS:
            phases = [found[number, way, i] for i in range(len(each.recipes))]
            failed = [phase for phase in phases if isinstance(phase, str)]
            if failed:
                raise RuntimeError(f"{each.what}, {way}: {failed[0]}")
            cells.append(each.figure(*phases))
        rows.append(f"| {each.what} | {' | '.join(cells)} | {each.goal} |")
    return "\n".join(["", *rows, ""])
