"""Every metric in metrics.jsonl, with its formula, as a Markdown page; generated so that it cannot be out of date."""

from __future__ import annotations

from collections.abc import Mapping

from ..registry import Registry


def tables(registry: Registry) -> dict[str, Mapping[str, str]]:
    """Heading to metrics: those of each stage, then those that algorithms and rewards add."""
    from . import preference, reward_model, sft
    from .rl.metrics import METRICS as rl
    from .rl.metrics import reward_metrics

    sections: dict[str, Mapping[str, str]] = {
        "sft": sft.METRICS,
        "preference": preference.METRICS,
        "reward_model": reward_model.METRICS,
        "rl": rl,
    }
    for name, metrics in registry.metrics("algorithms").items():
        sections[f"rl, added by {name}"] = metrics
    for name, metrics in registry.metrics("rewards").items():
        if metrics:
            sections[f"rl, added by the reward {name}"] = reward_metrics(name, metrics)
    return sections


def document(registry: Registry) -> str:
    """The section on metrics."""
    lines = [
        "## The metrics",
        "",
        "`metrics.jsonl` holds one flat object an update: `stage`, `step`, `time` (seconds since 1970) and these. "
        "Means over tokens are over the tokens that the policy wrote. What an evaluation measured begins with `eval/`.",
        "",
    ]
    for heading, table in tables(registry).items():
        lines += [f"### {heading}", "", "| metric | what it is |", "|---|---|"]
        lines += [f"| `{name}` | {formula.replace('|', chr(92) + '|')} |" for name, formula in table.items()]
        lines.append("")
    return "\n".join(lines)
