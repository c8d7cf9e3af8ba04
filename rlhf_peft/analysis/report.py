"""The report: one HTML file that opens anywhere, with figures, and the answers to search and sort."""

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
from . import figures
from .answers import Answer, answers, score
from .charts import CHARTS, PHASES
from .curves import Curve, curve, heads

MOST_ANSWERS = 1000
"""Of a run; a page with more is slow to open."""
MOST_PAIRS = 10


@dataclass(frozen=True, slots=True)
class Drawn:
    """One figure of the page.

    Attributes:
        title: above it.
        svg: the figure.
        note: below it: what it shows, and what to look for.
    """

    title: str
    svg: str
    note: str


def report(runs: Sequence[History]) -> str:
    """The page.

    Args:
        runs: one, or several to be overlaid.

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
    shown = [(name, kind, _drawn(runs, name, kind), wrong_pairs(runs, name)) for name, kind in stages]
    listed = _answers(runs, stages)
    page = templates.get_template("report.html.j2").render(
        title=" and ".join(run.name for run in runs),
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        runs=[summary(run) for run in runs],
        time=_time(runs),
        stages=[stage for stage in shown if stage[2]],
        answers=[answer.plain() for answer in listed],
    )
    return page


def summary(run: History) -> dict[str, Any]:
    """What stands at the head of the page."""
    recipe, manifest = run.recipe, run.manifest
    versions = {name: found for name, found in manifest.get("versions", {}).items() if found}
    return {
        "name": run.name,
        "status": run.status,
        "seconds": run.seconds,
        "model": recipe["model"].get("path"),
        "quantization": _quantization(recipe["model"].get("quantization")),
        "lora": recipe.get("lora", {}).get("r"),
        "seed": recipe.get("seed"),
        "hardware": _hardware(manifest.get("hardware")),
        "versions": ", ".join(f"{name} {found}" for name, found in versions.items()),
        "stages": [_stage_row(run, stage) for stage in recipe["stages"]],
        "recipe": (run.path / "recipe.yaml").read_text(encoding="utf-8", errors="replace"),
    }


def _quantization(section: Any) -> str | None:
    """The quantizer's name, and its options in brackets."""
    if not isinstance(section, Mapping):
        return section
    options = ", ".join(f"{key}: {value}" for key, value in section.items() if key != "name")
    return f"{section.get('name')} ({options})" if options else section.get("name")


def _hardware(found: Any) -> str | None:
    """As the manifest tells it, in one line."""
    if not isinstance(found, Mapping):
        return None
    cores = f", {found['cores']} cores" if "cores" in found else ""
    return f"{found.get('name')} ({found.get('device')}{cores}), {found.get('memory_gb')} GB"


def _stage_row(run: History, stage: Mapping[str, Any]) -> dict[str, Any]:
    name, data = str(stage["name"]), stage.get("dataset", {})
    last = run.last(name)
    how = stage.get("method") or (stage.get("algorithm") or {}).get("name") or ""
    return {
        "name": name,
        "kind": f"{stage['stage']} {how}".strip(),
        "data": data.get("path") or data.get("name"),
        "steps": max((int(line["step"]) for line in run.lines(name)), default=0),
        "figures": {name: last[name] for name in ranked(last)},
    }


def _drawn(runs: Sequence[History], stage: str, kind: str) -> list[Drawn]:
    """The figures of one stage that there is anything to draw of."""
    found = []
    for chart in CHARTS.get(kind, ()):
        curves = _curves(runs, stage, chart.figures)
        if max(len(own) for own in curves) >= chart.least:
            found.append(
                Drawn(chart.title, figures.lines(chart.title, curves, "step", share=chart.share), chart.note)
            )
    extra: dict[str, tuple[Callable[..., Drawn | None], ...]] = {
        "rl": (_against_kl, _distribution),
        "reward_model": (_calibrated,),
    }
    return found + [drawn for draw in extra.get(kind, ()) if (drawn := draw(runs, stage)) is not None]


def _curves(runs: Sequence[History], stage: str, wanted: Mapping[str, str]) -> list[dict[str, Curve]]:
    """Of each run, name to curve."""
    found: list[dict[str, Curve]] = []
    for run in runs:
        there, curves = run.last(stage), {}
        for pattern, label in wanted.items():
            begin, star, end = pattern.partition("*")
            names = [n for n in there if n.startswith(begin) and n.endswith(end)] if star else [pattern]
            for name in names:
                inner = name.removeprefix(begin).removesuffix(end).strip("/") if star else ""
                members = heads(run, stage, name)
                for head in members if len(members) > 1 else [None]:
                    of = "" if head is None else f"reward-{head}"
                    words = " ".join(filter(None, (run.name if len(runs) > 1 else "", label, inner, of)))
                    drawn = curve(run, stage, name, head=head)
                    if drawn.x:
                        curves[words or name] = drawn
        found.append(curves)
    return found


def _against_kl(runs: Sequence[History], stage: str) -> Drawn | None:
    curves = {}
    for run in runs:
        for figure, label in (("reward", "sampled"), ("eval/reward", "held out")):
            found = curve(run, stage, figure, "kl")
            if len(found.x) > 1:
                curves[f"{run.name}, {label}" if len(runs) > 1 else label] = found
    if not curves:
        return None
    title = "Reward against KL"
    drawn = figures.path(title, curves, "KL to the reference", "reward")
    return Drawn(
        title,
        drawn,
        "What each nat of distance buys; the dot is the end. Where it bends down, the reward is being gamed.",
    )


def _distribution(runs: Sequence[History], stage: str) -> Drawn | None:
    groups: dict[str, list[float]] = {}
    for run in runs:
        rows = [row for row in run.samples if row.get("stage") == stage and row.get("split") == "eval"]
        steps = [row["step"] for row in rows]
        for label, step in (("before", min(steps, default=0)), ("after", max(steps, default=0))):
            values = [score(row) for row in rows if row["step"] == step]
            given = [value for value in values if value is not None and math.isfinite(value)]
            if given:
                groups[f"{run.name}, {label}" if len(runs) > 1 else label] = given
    if not groups:
        return None
    title = "Rewards before and after"
    return Drawn(title, figures.histogram(title, groups, "score"), "Of the held-out answers.")


def _calibrated(runs: Sequence[History], stage: str) -> Drawn | None:
    groups = {}
    for run in runs:
        rows = pairs(run, stage)
        if rows:
            margins, labels = [row["margin"] for row in rows], [row["label"] for row in rows]
            groups[run.name] = reliability(margins, labels)
    if not groups:
        return None
    title = "Calibration"
    return Drawn(
        title, figures.calibration(title, groups), "Held-out pairs. Below the line: surer than it should be."
    )


def pairs(run: History, stage: str) -> list[dict[str, Any]]:
    """The held-out pairs of a reward model whose margin is a number."""
    rows = (row for row in run.samples if row.get("stage") == stage and row.get("split") == "pairs")
    return [row for row in rows if row["margin"] is not None]


def turned(row: Mapping[str, Any]) -> dict[str, Any]:
    """A pair the other way round: what is called chosen is what people preferred."""
    swapped = {"chosen": row["rejected"], "rejected": row["chosen"]}
    return {**row, **swapped, "margin": -row["margin"], "label": 1.0 - row["label"]}


def wrong_pairs(runs: Sequence[History], stage: str) -> list[dict[str, Any]]:
    """The held-out pairs on which a reward model is surest of what people did not say: its faults, or theirs."""
    found = [
        {"run": run.name, **(row if row["label"] >= 0.5 else turned(row))}
        for run in runs
        for row in pairs(run, stage)
        if row["margin"] * (row["label"] - 0.5) < 0
    ]
    return sorted(found, key=lambda row: -abs(row["margin"]))[:MOST_PAIRS]


def _time(runs: Sequence[History]) -> list[Drawn]:
    """Where the time went: by stage, and by phase of RL."""
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
    made = []
    for title, groups in (("Seconds by stage", stages), ("Seconds of RL by phase", phases)):
        if groups:
            made.append(Drawn(title, figures.bars(title, groups, "seconds"), ""))
    return made


def _answers(runs: Sequence[History], stages: Sequence[tuple[str, str]]) -> list[Answer]:
    """Of the last stage of each run that has any."""
    found: list[Answer] = []
    for run in runs:
        for name, _ in reversed(stages):
            listed = answers(run, name)
            if listed:
                found += listed[:MOST_ANSWERS]
                break
    return found
