"""The metrics that matter most, in one table: what they are called, and which way is better.

Their formulas stand in the `METRICS` of the stages. Whoever shows a run in few figures takes them from here: the lines
of progress, the closing table, reports, comparisons, sweeps and model cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Headline:
    """A metric that matters.

    Attributes:
        name: in metrics.jsonl.
        label: what people are shown.
        higher_is_better: None: neither is.
        live: place in a line of progress; None: it is not shown there.
        on_card: it stands in a model card.
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
"""Those that say most come first."""

EACH_REWARD = re.compile(r"eval/rewards/[^/]+/mean")
"""The held-out mean of one reward, which matters as much as their sum."""

_BY_NAME = {headline.name: headline for headline in HEADLINES}


def headline(name: str) -> Headline | None:
    """The entry of a metric; None where it is none of those that matter most."""
    return _BY_NAME.get(name)


def live() -> tuple[Headline, ...]:
    """Those of a line of progress, in its order."""
    return tuple(sorted((h for h in HEADLINES if h.live is not None), key=lambda h: h.live or 0))


def ranked(names: Iterable[str]) -> list[str]:
    """Those of some metrics that matter, those that say most first; held-out means of single rewards begin."""
    names = list(names)
    rewards = sorted(name for name in names if EACH_REWARD.fullmatch(name))
    return rewards + [h.name for h in HEADLINES if h.name in names]


def on_card(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of some metrics that a model card has, in their own order."""
    return {
        name: value
        for name, value in metrics.items()
        if EACH_REWARD.fullmatch(name) or ((h := headline(name)) is not None and h.on_card)
    }
