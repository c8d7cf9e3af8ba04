"""The table in Markdown of what was measured on a GPU, from its JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .cases import CASES

GRPO, TRL = "GRPO step, Qwen3 1.7B", "GRPO step by TRL, Qwen3 1.7B"


def read(file: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The machines, in words, and the last line of each case.

    Args:
        file: of JSON lines; one that was cut off while it was written is left out.
    """
    machines: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    for text in file.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "machine" in line:
            machines.append(_machine(line))
        else:
            found[line["case"]] = line
    return list(dict.fromkeys(machines)), found


def render(machines: Iterable[str], found: dict[str, dict[str, Any]]) -> str:
    """The table; cases that were not measured are left out, and those that failed say why."""
    rows = ["| | figure | beside | most memory: allocated, reserved |", "|---|---|---|---|"]
    ceiling = found.get("ceilings", {}).get("figures", {})
    ours = found.get(GRPO, {}).get("figures", {}).get("seconds")
    for case in CASES:
        line = found.get(case.name)
        if line is None:
            continue
        name = case.name if line["shape"] == "full" else f"{case.name} ({line['shape']})"
        if "error" in line:
            rows.append(f"| {name} | **failed** | {line['error'].splitlines()[0][:160]} | |")
            continue
        figures = line["figures"]
        figure, beside = _said(case.work, figures, ceiling)
        if case.name == TRL and ours:
            beside = f"{figures['seconds'] / ours:.2f} times ours"
        rows.append(f"| {name} | {figure} | {beside} | {_memory(figures)} |")
    return "\n".join(["", *machines, "", *rows, ""])


def _said(work: str, figures: dict[str, Any], ceiling: dict[str, Any]) -> tuple[str, str]:
    if work == "ceilings":
        beside = (
            f"product in bfloat16 {figures['product flop/s'] / 1e12:,.3g} TFLOP/s; "
            f"a launch {1e6 * figures['seconds a launch']:.1f} µs"
        )
        return f"copy {figures['copy bytes/s'] / 1e9:,.4g} GB/s", beside
    if work == "decoding":
        beside = (
            f"{figures['share of the copy bandwidth']:.0%} of the copy bandwidth, {figures['launches a step']:,.0f} "
            f"launches a step, prompts in {figures['seconds of the prompts']:.2f} s"
        )
        return f"{figures['tokens/s']:,.0f} tokens/s", beside
    if work in ("scoring", "update"):
        beside = f"{figures['tokens']:,} tokens, {figures['tokens/s']:,.0f} tokens/s"
        if ceiling:
            beside += f", {figures['flop/s'] / ceiling['product flop/s']:.0%} of the product in bfloat16"
        return f"{figures['seconds']:.3g} s", beside
    each = [
        f"{name} {figures[f'seconds of {name}']:.3g}"
        for name in ("rollout", "scoring", "update")
        if f"seconds of {name}" in figures
    ]
    return f"{figures['seconds']:.3g} s", f"{', '.join(each)} s" if each else ""


def _memory(figures: dict[str, Any]) -> str:
    if "peak allocated" not in figures:
        return ""
    return ", ".join(f"{figures[key] / 1024**3:.2f}" for key in ("peak allocated", "peak reserved")) + " GB"


def _machine(line: dict[str, Any]) -> str:
    machine = dict(line["machine"])
    device, memory = machine.pop("device"), machine.pop("memory", None)
    size = f", {memory / 1024**3:.0f} GB" if memory else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine.items())
    return f"{line['date']}; {device}{size}; {versions}."
