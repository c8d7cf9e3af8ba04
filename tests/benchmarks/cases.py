"""What is measured: each line of the table, from the runs of the contenders that it needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

STEP = {"prompts": 4, "generations": 8, "prompt": 64, "new": 128, "steps": 4}
"""4 prompts x 8 completions x 128 new tokens, as all step benchmarks have it; the first step warms up."""

MICRO = {"tokens": 1536}
"""Eight rows of 192 tokens a forward: as many as the competitor's micro-batch of 8 has."""


@dataclass(frozen=True, slots=True)
class Run:
    """One contender on one case, in a process of its own.

    Attributes:
        contender: the module that has it: ours, generate, trl_grpo, trl_ppo.
        case: its name there.
        options: of the case, as JSON.
        turns: how often it is measured; the medians count.
    """

    contender: str
    case: str
    options: str
    turns: int = 1

    @property
    def label(self) -> str:
        """In a few words."""
        options = json.loads(self.options)
        given = " ".join(f"{k}={v}" for k, v in options.items() if k not in STEP or STEP[k] != v)
        return " ".join(filter(None, (self.contender, self.case, given)))


def run(contender: str, case: str, *, turns: int = 1, **options: Any) -> Run:
    """A run with these options."""
    return Run(contender, case, json.dumps(options, sort_keys=True), turns)


def rollouts(**options: Any) -> tuple[Run, Run]:
    """Our rollout and transformers', three turns each."""
    ours, theirs = (run(who, "rollout", turns=3, **options) for who in ("ours", "generate"))
    return ours, theirs


GRPO = [run("ours", "grpo", **STEP, tokens=tokens) for tokens in (1024, 2048)]
TRL_GRPO = [run("trl_grpo", "grpo", **STEP, micro=micro) for micro in (8, 32)]
PPO = {value: run("ours", "ppo", **STEP, **MICRO, value=value) for value in ("reward", "policy", "own")}
TRL_PPO = [run("trl_ppo", "ppo", **STEP, micro=micro) for micro in (8, 32)]
LEAN = run("ours", "ppo", **STEP, **MICRO, value="reward", merge=False)
SFT = run("ours", "sft", **STEP, **MICRO)
MANY, ONE = {**STEP, "steps": 5}, {**STEP, "prompts": 1, "generations": 1, "steps": 5}
EARLY, ENDS = {**MANY, "early": True}, {**MANY, "ends": 400}
FLAT = run("ours", "flat", turns=3, prompts=4, generations=4, prompt=16, new=32, steps=200)
SIZED = {"generations": 4, "prompt": 16, "steps": 40}
LENGTHS = [run("ours", "flat", **SIZED, prompts=4, new=new) for new in (32, 128)]
COUNTS = [run("ours", "flat", **SIZED, prompts=prompts, new=32) for prompts in (4, 16)]
LOGPS = [run("ours", "logps", rows=rows, chunk=chunk) for rows, chunk in ((512, 64), (4096, 64), (4096, 256))]


def _plan(algorithm: dict[str, Any] | None, **options: Any) -> Run:
    return run("ours", "plan", **{**STEP, "steps": 2, "tokens": 2048, "algorithm": algorithm, **options})


PLANS = {
    "GRPO": _plan({"name": "grpo", "beta": 0.04}),
    "GRPO, 1,024 tokens a forward": _plan({"name": "grpo", "beta": 0.04}, tokens=1024),
    "GRPO, recomputing": _plan({"name": "grpo", "beta": 0.04}, model={"gradient_checkpointing": True}),
    "PPO, own value": _plan({"name": "ppo", "num_epochs": 1, "value": "own"}),
    "PPO, value on the reward trunk": _plan({"name": "ppo", "num_epochs": 1, "value": "reward"}),
    "PPO, 64 rows, no merging": _plan(
        {"name": "ppo", "value": "policy"}, prompts=8, model={"merge_rollouts": False}
    ),
    "SFT": _plan(None),
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Attributes:
        what: is compared.
        runs: that it is computed from.
        figures: from the runs' figures to the text of both sides and the figure that the goal is about.
        goal: the least, or with `most` the largest, that is aimed at.
        most: whether less is better.
    """

    what: str
    runs: tuple[Run, ...]
    figures: Callable[..., tuple[str, str, float]]
    goal: float
    most: bool = False

    def reached(self, figure: float) -> bool:
        """Whether the goal is."""
        return figure <= self.goal if self.most else figure >= self.goal


def _sides(key: str, found: tuple[dict[str, Any], ...]) -> tuple[float, float]:
    """The least of ours and of theirs, whichever setting gives it."""
    ours, theirs = (min(part[key] for part in found if part["ours"] is side) for side in (True, False))
    return ours, theirs


def _faster(*found: dict[str, Any]) -> tuple[str, str, float]:
    ours, theirs = _sides("seconds", found)
    return f"{ours:.1f} s", f"{theirs:.1f} s", theirs / ours


def _smaller(key: str) -> Callable[..., tuple[str, str, float]]:
    def compare(*found: dict[str, Any]) -> tuple[str, str, float]:
        ours, theirs = _sides(key, found)
        return _size(ours), _size(theirs), ours / theirs

    return compare


def _against(key: str) -> Callable[..., tuple[str, str, float]]:
    def compare(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, str, float]:
        return _size(one[key]), _size(other[key]), one[key] / other[key]

    return compare


def _quicker(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, str, float]:
    mine, other = ours["tokens_per_second"], theirs["tokens_per_second"]
    return f"{mine:.0f} tokens/s", f"{other:.0f} tokens/s", mine / other


def _flat(key: str, unit: Callable[[float], str]) -> Callable[..., tuple[str, str, float]]:
    def compare(found: dict[str, Any]) -> tuple[str, str, float]:
        begin, end = found[f"{key} 20 to 40"], found[f"{key} at the end"]
        return unit(end), f"{unit(begin)} in steps 20 to 40", abs(end / begin - 1)

    return compare


def _linear(*found: dict[str, Any]) -> tuple[str, str, float]:
    """Seconds a token written, with four times the tokens over those without."""
    told = [f"{1e6 * part['seconds a token']:.0f} µs a token" for part in found]
    return told[-1], told[0], found[-1]["units a token"] / found[0]["units a token"]


def _planned(found: dict[str, Any]) -> tuple[str, str, float]:
    planned, measured = found["planned"], found["measured"]
    return f"{_size(planned)} planned", f"{_size(measured)} measured", abs(planned / measured - 1)


def _chunked(few: dict[str, Any], many: dict[str, Any], wide: dict[str, Any]) -> tuple[str, str, float]:
    """Memory with 8 times the tokens, over what the chunk's buffers explain."""
    return (
        f"{_size(many['added'])} for 4,096 tokens",
        f"{_size(few['added'])} for 512 (chunk 256: {_size(wide['added'])})",
        many["added"] / few["added"],
    )


def _size(amount: float) -> str:
    return f"{amount / 1e9:.2f} GB" if amount >= 1e8 else f"{amount / 1e6:.0f} MB"


def _seconds(value: float) -> str:
    return f"{value:.3f} s"


TABLE = [
    Line("GRPO step", (*GRPO, *TRL_GRPO), _faster, 2.5),
    Line("GRPO, peak memory", (*GRPO, *TRL_GRPO), _smaller("peak"), 0.5, most=True),
    Line("GRPO, memory that the steps add", (*GRPO, *TRL_GRPO), _smaller("added"), 0.5, most=True),
    Line("PPO step, value on the reward trunk", (PPO["reward"], *TRL_PPO), _faster, 2.0),
    Line("PPO step, value on the policy trunk", (PPO["policy"], *TRL_PPO), _faster, 2.0),
    Line("PPO step, value on its own adapter", (PPO["own"], *TRL_PPO), _faster, 1.4),
    Line("PPO, added memory, reward trunk", (PPO["reward"], *TRL_PPO), _smaller("added"), 0.5, most=True),
    Line("PPO, added memory, own adapter", (PPO["own"], *TRL_PPO), _smaller("added"), 0.5, most=True),
    Line("Rollout, 32 rows", rollouts(**MANY), _quicker, 2.5),
    Line("Rollout, 1 row", rollouts(**ONE), _quicker, 1.5),
    Line("Rollout, 32 rows, three in four end within 24 tokens", rollouts(**EARLY), _quicker, 4.0),
    Line("Rollout, 32 rows, each token ends its row with p = 0.05", rollouts(**ENDS), _quicker, 4.0),
    Line("PPO with four roles against SFT, peak memory", (LEAN, SFT), _against("peak"), 1.15, most=True),
    Line("PPO with four roles against SFT, added memory", (LEAN, SFT), _against("added"), 1.15, most=True),
    *(
        Line(f"`plan` against the measured peak: {name}", (planned,), _planned, 0.15, most=True)
        for name, planned in PLANS.items()
    ),
    Line("Log-probabilities, vocabulary 151,646", tuple(LOGPS), _chunked, 1.2, most=True),
    Line("Seconds of a step, the last 20 of 200", (FLAT,), _flat("seconds", _seconds), 0.05, most=True),
    Line("Memory, the last 20 of 200 steps", (FLAT,), _flat("memory", _size), 0.02, most=True),
    Line("Seconds a token, 16 prompts against 4", tuple(COUNTS), _linear, 1.1, most=True),
    Line("Seconds a token, completions of 128 against 32", tuple(LENGTHS), _linear, 1.1, most=True),
]
"""Every line that is measured on a CPU, with its goal."""
