"""The most important metrics in one table: their labels, and whether higher or lower is better.

The `METRICS` of the stages have their formulas. Progress lines, the table at the end of a run, reports, comparisons,
sweeps and model cards take from here which metrics they show.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Headline:
    """One of the most important metrics.

    Attributes:
        name: its key in metrics.jsonl.
        label: its name in tables and plots.
        higher_is_better: None where neither direction is better.
        live: position in a line of progress; None: it is not shown there.
        on_card: whether a model card has it.
    """

    name: str
    label: str
    higher_is_better: bool | None
    live: int | None = None
    on_card: bool = True


HEADLINES = (
    Headline("eval/reward", "held-out reward", True, live=9),
    Headline("reward", "reward", True, live=5),
    Headline("eval/accuracy", "held-out accuracy", True, live=3),
    Headline("accuracy", "accuracy", True, live=2),
    Headline("eval/margin", "held-out margin", True),
    Headline("eval/ece", "calibration error (ECE)", False),
    Headline("eval_rewards/accuracies", "held-out accuracy", True),
    Headline("rewards/accuracies", "accuracy", True, live=4),
    Headline("eval/kl", "held-out KL", False),
    Headline("kl", "KL", False, live=6),
    Headline("eval/loss", "held-out loss", False, on_card=False),
    Headline("eval_loss", "held-out loss", False),
    Headline("loss", "loss", False, live=1),
    Headline("entropy", "entropy", None, live=7, on_card=False),
    Headline("completions/mean_length", "length", None, live=8, on_card=False),
    Headline("tokens_per_second/rollout", "tok/s", True, live=10, on_card=False),
)
"""The most important ones come first."""

EACH_REWARD = re.compile(r"eval/rewards/[^/]+/mean")
"""The key of the held-out mean of one reward, which is as important as that of their sum."""

_BY_NAME = {headline.name: headline for headline in HEADLINES}


def headline(name: str) -> Headline | None:
    """The table's entry of a metric; None where the table has none."""
    return _BY_NAME.get(name)


def live() -> tuple[Headline, ...]:
    """The metrics of a line of progress, in the line's order."""
    return tuple(sorted((h for h in HEADLINES if h.live is not None), key=lambda h: h.live or 0))


def ranked(names: Iterable[str]) -> list[str]:
    """The important ones of some metrics: first the held-out means of single rewards, then in the table's order."""
    names = list(names)
    rewards = sorted(name for name in names if EACH_REWARD.fullmatch(name))
    return rewards + [h.name for h in HEADLINES if h.name in names]


def on_card(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that a model card has, out of some metrics, in the order in which they are given."""
    return {
        name: value
        for name, value in metrics.items()
        if EACH_REWARD.fullmatch(name) or ((h := headline(name)) is not None and h.on_card)
    }
