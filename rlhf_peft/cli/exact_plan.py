"""`rlhf-peft plan --exact`: prints what a dry run on a simulated card measured."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .terminal import make_console

if TYPE_CHECKING:
    from ..planning.exact.extrapolate import Measured
    from ..planning.exact.plan import ExactPlan


def as_dict(plan: ExactPlan) -> dict[str, Any]:
    """The plan as plain data; sizes are in bytes."""
    peak = plan.peak
    return {
        "card": plan.card,
        "phases": [_phase(phase, plan.has_speed) for phase in plan.phases],
        "peak": {"stage": peak.stage, "phase": peak.name, "allocated": peak.peak, "reserved": peak.reserved},
        "available": {"name": plan.budget.name, "total": plan.budget.total, "reserve": plan.budget.reserve},
        "verdict": plan.verdict,
        "remedies": [
            {
                "overrides": list(remedy.overrides),
                "phases": [_phase(phase, plan.has_speed) for phase in remedy.phases],
                "reserved": remedy.reserved,
                "fits": remedy.fits,
            }
            for remedy in plan.remedies
        ],
        "notes": plan.notes,
    }


def _phase(phase: Measured, has_speed: bool) -> dict[str, Any]:
    found = asdict(phase)
    found["phase"], found["allocated"] = found.pop("name"), found.pop("peak")
    if not has_speed:
        for key in ("seconds", "kernel_seconds"):
            del found[key]
    return found


def show(plan: ExactPlan) -> None:
    """Print the phases, the verdict, and what changes of the recipe save, on stdout."""
    from rich.box import SIMPLE
    from rich.table import Table

    console = make_console()
    console.print(_table(plan.phases, plan.has_speed))
    if plan.remedies:
        changes = Table("with", "reserved", "saves", "", box=SIMPLE)
        for remedy in plan.remedies:
            saves = plan.peak.reserved - remedy.reserved
            enough = "enough" if remedy.fits else "not enough"
            changes.add_row(" ".join(remedy.overrides), size(remedy.reserved), size(saves), enough)
        console.print(changes)
    for text in lines(plan):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _table(phases: list[Measured], has_speed: bool) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    speed = ["seconds"] if has_speed else []
    table = Table("stage", "phase", "allocated", "reserved", "kernels", "host waits", *speed, box=SIMPLE)
    for phase in phases:
        row = [
            phase.stage, phase.name, size(phase.peak), size(phase.reserved), f"{phase.launches:,.0f}",
            f"{phase.reads:,.0f}",
        ]  # fmt: skip
        table.add_row(*row, *([f"{phase.seconds:.2f}"] if has_speed else []))
    return table


def lines(plan: ExactPlan) -> list[str]:
    """Lines of text with the verdict, the seconds of a step, and the assumptions."""
    budget, peak = plan.budget, plan.peak
    texts = [
        f"{plan.verdict}: {size(peak.reserved)} reserved at the peak ({peak.stage}, {peak.name}); {budget.name} has "
        f"{size(budget.total)}, of which {size(budget.reserve)} stay in reserve"
    ]
    if plan.has_speed:
        steps: dict[str, float] = {}
        for phase in plan.phases:
            if phase.name != "evaluation":
                steps[phase.stage] = steps.get(phase.stage, 0.0) + phase.seconds
        each = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in steps.items())
        texts.append(f"a step takes at least: {each} (no kernel faster than the card's bandwidth and rate)")
    else:
        texts.append(
            "note: no seconds, because the card's speed is not known; name one: --gpu 'RTX 4060 Ti 16GB'"
        )
    texts.append("note: measured on a simulated card with few layers, and extrapolated; nothing ran on a GPU")
    return [*texts, *(f"note: {note}" for note in plan.notes)]


def size(amount: float) -> str:
    """A number of bytes in MB or GB."""
    return f"{amount / 1024**3:.2f} GB" if amount >= 1024**3 else f"{amount / 1024**2:.1f} MB"
