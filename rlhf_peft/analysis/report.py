"""The report: one HTML file that opens anywhere, with plots, and answers that can be searched and sorted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from .. import __version__
from ..maths import reliability
from ..runs import History, distinct
from ..runs.headlines import ranked
from . import plots
from .answers import Answer, answers, score
from .charts import CHARTS, PHASES
from .curves import Curve, curve, heads

MOST_ANSWERS = 1000
"""Most answers of a run; a page with more is slow to open."""
MOST_PAIRS = 10


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of the page.

    Attributes:
        title: title above it.
        svg: the plot.
        note: text below it: what it shows, and what to look for.
    """

    title: str
    svg: str
    note: str


def report(runs: Sequence[History]) -> str:
    """The HTML page.

    Args:
        runs: one run, or several that are overlaid.

    Raises:
        RunFolderError: a run's files cannot be read.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    runs = distinct(runs)
    templates = Environment(
        loader=PackageLoader("rlhf_peft.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    stages = list(dict.fromkeys((name, kind) for run in runs for name, kind in run.kinds.items()))
    stage_parts = [(name, kind, _plots(runs, name, kind), wrong_pairs(runs, name)) for name, kind in stages]
    all_answers = _answers(runs, stages)
    page = templates.get_template("report.html.j2").render(
        title=" and ".join(run.name for run in runs),
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        runs=[summary(run) for run in runs],
        time=_time(runs),
        stages=[stage for stage in stage_parts if stage[2]],
        answers=[answer.plain() for answer in all_answers],
    )
    return page


def summary(run: History) -> dict[str, Any]:
    """Facts about a run for the head of the page."""
    recipe, manifest = run.recipe, run.manifest
    versions = {name: version for name, version in manifest.get("versions", {}).items() if version}
    return {
        "name": run.name,
        "status": run.status,
        "seconds": run.seconds,
        "model": recipe["model"].get("path"),
        "quantization": _quantization(recipe["model"].get("quantization")),
        "lora": recipe.get("lora", {}).get("r"),
        "seed": recipe.get("seed"),
        "hardware": _hardware(manifest.get("hardware")),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "stages": [_stage_row(run, stage) for stage in recipe["stages"]],
        "recipe": (run.path / "recipe.yaml").read_text(encoding="utf-8", errors="replace"),
    }


def _quantization(section: Any) -> str | None:
    """The quantizer's name, with its options in brackets."""
    if not isinstance(section, Mapping):
        return section
    options = ", ".join(f"{key}: {value}" for key, value in section.items() if key != "name")
    return f"{section.get('name')} ({options})" if options else section.get("name")


def _hardware(hardware: Any) -> str | None:
    """The hardware of a run's manifest in one line."""
    if not isinstance(hardware, Mapping):
        return None
    cores = f", {hardware['cores']} cores" if "cores" in hardware else ""
    return f"{hardware.get('name')} ({hardware.get('device')}{cores}), {hardware.get('memory_gb')} GB"


def _stage_row(run: History, stage: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the table of stages: its data, number of steps and last metrics."""
    name, data = str(stage["name"]), stage.get("dataset", {})
    last = run.last(name)
    method = stage.get("method") or (stage.get("algorithm") or {}).get("name") or ""
    return {
        "name": name,
        "kind": f"{stage['stage']} {method}".strip(),
        "data": data.get("path") or data.get("name"),
        "steps": max((int(line["step"]) for line in run.lines(name)), default=0),
        "metrics": {name: last[name] for name in ranked(last)},
    }


def _plots(runs: Sequence[History], stage: str, kind: str) -> list[Plot]:
    """The plots of one stage for which there is data."""
    result = []
    for chart in CHARTS.get(kind, ()):
        curves = _curves(runs, stage, chart.metrics)
        if max(len(run_curves) for run_curves in curves) >= chart.min_curves:
            result.append(
                Plot(chart.title, plots.line_plot(chart.title, curves, "step", share=chart.share), chart.note)
            )
    extra: dict[str, tuple[Callable[..., Plot | None], ...]] = {
        "rl": (_reward_against_kl, _score_distribution),
        "reward_model": (_calibration,),
    }
    return result + [plot for draw in extra.get(kind, ()) if (plot := draw(runs, stage)) is not None]


def _curves(runs: Sequence[History], stage: str, patterns: Mapping[str, str]) -> list[dict[str, Curve]]:
    """For each run, its curves by label."""
    curves_of_runs: list[dict[str, Curve]] = []
    for run in runs:
        last, curves = run.last(stage), {}
        for pattern, label in patterns.items():
            begin, star, end = pattern.partition("*")
            names = [n for n in last if n.startswith(begin) and n.endswith(end)] if star else [pattern]
            for name in names:
                inner = name.removeprefix(begin).removesuffix(end).strip("/") if star else ""
                members = heads(run, stage, name)
                for head in members if len(members) > 1 else [None]:
                    head_name = "" if head is None else f"reward-{head}"
                    words = " ".join(
                        filter(None, (run.name if len(runs) > 1 else "", label, inner, head_name))
                    )
                    one_curve = curve(run, stage, name, head=head)
                    if one_curve.x:
                        curves[words or name] = one_curve
        curves_of_runs.append(curves)
    return curves_of_runs


def _reward_against_kl(runs: Sequence[History], stage: str) -> Plot | None:
    """A plot of reward over KL, if a run has both."""
    curves = {}
    for run in runs:
        for metric, label in (("reward", "sampled"), ("eval/reward", "held out")):
            points = curve(run, stage, metric, "kl")
            if len(points.x) > 1:
                curves[f"{run.name}, {label}" if len(runs) > 1 else label] = points
    if not curves:
        return None
    title = "Reward against KL"
    plot = plots.trajectory_plot(title, curves, "KL to the reference", "reward")
    return Plot(
        title,
        plot,
        "Reward over the distance from the reference; the dot is the end of training. Where the curve bends down, the "
        "policy exploits the reward.",
    )


def _score_distribution(runs: Sequence[History], stage: str) -> Plot | None:
    """A histogram of the held-out scores before and after, if there are any."""
    groups: dict[str, list[float]] = {}
    for run in runs:
        rows = [row for row in run.samples if row.get("stage") == stage and row.get("split") == "eval"]
        steps = [row["step"] for row in rows]
        for label, step in (("before", min(steps, default=0)), ("after", max(steps, default=0))):
            values = [score(row) for row in rows if row["step"] == step]
            finite = [value for value in values if value is not None and math.isfinite(value)]
            if finite:
                groups[f"{run.name}, {label}" if len(runs) > 1 else label] = finite
    if not groups:
        return None
    title = "Rewards before and after"
    return Plot(title, plots.histogram(title, groups, "score"), "Of the held-out answers.")


def _calibration(runs: Sequence[History], stage: str) -> Plot | None:
    """A calibration plot of the reward model on held-out pairs, if there are any."""
    groups = {}
    for run in runs:
        rows = pairs(run, stage)
        if rows:
            margins, labels = [row["margin"] for row in rows], [row["label"] for row in rows]
            groups[run.name] = reliability(margins, labels)
    if not groups:
        return None
    title = "Calibration"
    return Plot(
        title,
        plots.calibration_plot(title, groups),
        "Held-out pairs. Below the line, the reward model is overconfident.",
    )


def pairs(run: History, stage: str) -> list[dict[str, Any]]:
    """The held-out pairs of a reward model whose margin is a number."""
    rows = (row for row in run.samples if row.get("stage") == stage and row.get("split") == "pairs")
    return [row for row in rows if row["margin"] is not None]


def with_sides_swapped(row: Mapping[str, Any]) -> dict[str, Any]:
    """A pair with its sides swapped, so that `chosen` is the answer that people preferred."""
    swapped = {"chosen": row["rejected"], "rejected": row["chosen"]}
    return {**row, **swapped, "margin": -row["margin"], "label": 1.0 - row["label"]}


def wrong_pairs(runs: Sequence[History], stage: str) -> list[dict[str, Any]]:
    """The held-out pairs on which a reward model most confidently contradicts the label."""
    wrong = [
        {"run": run.name, **(row if row["label"] >= 0.5 else with_sides_swapped(row))}
        for run in runs
        for row in pairs(run, stage)
        if row["margin"] * (row["label"] - 0.5) < 0
    ]
    return sorted(wrong, key=lambda row: -abs(row["margin"]))[:MOST_PAIRS]


def _time(runs: Sequence[History]) -> list[Plot]:
    """Plots of the time spent, by stage and by phase of RL."""
    stages: dict[str, dict[str, float]] = {}
    for run in runs:
        for name in run.kinds:
            lines = [line["time"] for line in run.lines(name) if isinstance(line.get("time"), int | float)]
            if len(lines) > 1:
                stages.setdefault(run.name, {})[name] = sum(run.elapsed(a, b) for a, b in pairwise(lines))
    phases: dict[str, dict[str, float]] = {}
    for run in runs:
        for phase in PHASES:
            spent = sum(line.get(f"time/{phase}") or 0.0 for line in run.metrics)
            if spent:
                phases.setdefault(run.name, {})[phase] = spent
    result = []
    for title, groups in (("Seconds by stage", stages), ("Seconds of RL by phase", phases)):
        if groups:
            result.append(Plot(title, plots.bar_plot(title, groups, "seconds"), ""))
    return result


def _answers(runs: Sequence[History], stages: Sequence[tuple[str, str]]) -> list[Answer]:
    """The answers of each run's last stage that has any."""
    all_answers: list[Answer] = []
    for run in runs:
        for name, _ in reversed(stages):
            stage_answers = answers(run, name)
            if stage_answers:
                all_answers += stage_answers[:MOST_ANSWERS]
                break
    return all_answers
