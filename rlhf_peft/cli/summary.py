"""The output at the end of a run: a table of metrics, a few completions side by side, and commands to run next."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..runs.headlines import HEADLINES, headline
from .terminal import escape, make_console

if TYPE_CHECKING:
    from ..api import Result
    from ..recipe import Recipe

SHOWN = 3
Row = tuple[str, str, str]


def show(result: Result, recipe: Recipe, console: Console | None = None) -> None:
    """Print the results of a run on stdout."""
    console = console or make_console()
    how = f"done in {result.seconds:.0f} s" if result.seconds else "has finished before; nothing was run"
    table = Table(box=SIMPLE, title=f"{recipe.name}: {how}", title_justify="left")
    for column in ("stage", "metric", "value"):
        table.add_column(column)
    for stage in recipe.stages:
        for row in rows(stage.stage, stage.name, result.stages.get(stage.name, {})):
            table.add_row(*row)
    console.print(table)
    for outcome in result.stages.values():
        _samples(console, outcome.get("samples", []))
    for line in next_lines(result, recipe):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def rows(kind: str, name: str, outcome: dict[str, Any]) -> list[Row]:
    """The rows of the table for one stage, each its name, a metric and a value."""
    metrics = outcome.get("metrics", outcome)
    seconds = [(name, "seconds", f"{outcome['seconds']:.0f}")] if "seconds" in outcome else []
    if kind == "reward_model" and metrics:
        return [
            (name, "held-out pairs ranked correctly", _share(metrics["eval/accuracy"], outcome["held_out"])),
            (name, label("eval/margin"), f"{metrics['eval/margin']:.3f}"),
            (name, label("eval/ece"), f"{metrics['eval/ece']:.3f}"),
            *seconds,
        ]
    if kind == "rl" and "before" in outcome:
        return [*_before_after(name, outcome), *seconds]
    shown = [
        (name, h.label, f"{metrics[h.name]:.3f}")
        for h in reversed(HEADLINES)
        if h.on_card and metrics.get(h.name) is not None
    ]
    return [*shown, *seconds]


def _before_after(name: str, outcome: dict[str, Any]) -> list[Row]:
    before, after, known = outcome["before"], outcome["after"], outcome.get("differences", {})
    rows = []
    for key in after:
        words = key.split("/")
        if words[1] == "rewards" and words[-1] == "mean":
            rows.append(
                (
                    name,
                    f"held-out {words[2]}",
                    f"{before[key]:.3f} -> {after[key]:.3f}{_change(known.get(key))}",
                )
            )
    rows.append((name, "KL to the reference, nats a completion", f"{after['eval/kl']:.2f}"))
    for key, label in (("completions/mean_length", "length, tokens"), ("completions/eos_rate", "EOS rate")):
        change = f"{before[f'eval/{key}']:.2f} -> {after[f'eval/{key}']:.2f}"
        rows.append((name, label, f"{change}{_change(known.get(f'eval/{key}'))}"))
    rows.append((name, "distinct-2", f"{before['eval/distinct_2']:.3f} -> {after['eval/distinct_2']:.3f}"))
    return rows


def label(name: str) -> str:
    """The label of a metric, or its name where it has no label."""
    known = headline(name)
    return known.label if known else name


def _share(share: float, n: int) -> str:
    """A share of n as text, with its 95 % interval (Wilson, 1927)."""
    z, many = 1.96, max(1, n)
    middle = (share + z * z / (2 * many)) / (1 + z * z / many)
    half = z / (1 + z * z / many) * math.sqrt(share * (1 - share) / many + z * z / (4 * many * many))
    pairs = "pair" if n == 1 else "pairs"
    return f"{share:.3f} of {n} {pairs} ({middle - half:.3f} to {middle + half:.3f} at 95 %)"


def _change(known: dict[str, float] | None) -> str:
    """The 95 % interval of a change over the same prompts, as text; empty where it is not known."""
    if known is None or known["n"] < 2 or known["low"] == known["high"] == 0:
        return ""
    noise = "; within noise" if known["low"] <= 0 <= known["high"] else ""
    return f"  ({known['low']:+.3f} to {known['high']:+.3f} at 95 %, n = {known['n']:.0f}{noise})"


def _samples(console: Console, samples: list[dict[str, Any]]) -> None:
    if not samples:
        return
    table = Table(box=SIMPLE, title="the same held-out prompts, before and after", title_justify="left")
    for column in ("prompt", "before", "after"):
        table.add_column(column, ratio=1, overflow="fold")
    for sample in samples[:SHOWN]:
        prompt = sample["prompt"]
        text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
        # A model's text must not be read as markup.
        parts = (text, sample["before"], sample["after"])
        table.add_row(*(Text(escape(part.strip())) for part in parts))
    console.print(table)


def next_lines(result: Result, recipe: Recipe) -> list[str]:
    """Lines of text with commands to run next."""
    folder, kinds = _short(result.folder), {stage.stage for stage in recipe.stages}
    run = folder.removeprefix("runs/")
    lines = [f"next: see it, answers too:  rlhf-peft report {run}"]
    if kinds != {"reward_model"}:
        lines.append(f"next: talk to it:  rlhf-peft chat {run}")
        lines.append(f"next: the adapter is {folder}/adapters/policy; hand it over:  rlhf-peft export {run}")
    if recipe.model.path.startswith("builtin:"):
        lines.append(
            "next: your own model, prompts and reward:  rlhf-peft recipes copy start my.yaml model.path=MODEL "
            "stages.rl.dataset.path=PROMPTS"
        )
    role = "reward" if kinds == {"reward_model"} else "policy"
    lines.append(f"next: continue from it:  rlhf-peft run RECIPE stages.rl.init.{role}={folder}")
    return lines


def _short(path: Path) -> str:
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)
