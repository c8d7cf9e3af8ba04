"""`rlhf-peft eval`: a run's policy beside its reference, with intervals."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .options import (
    Device,
    Json,
    Plugins,
    Rewards,
    RunName,
    Trust,
    Verbose,
    add_code_of,
    add_rewards,
    dataset_source,
    find_run,
    open_registry,
)
from .terminal import make_console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..recipe import Recipe, RewardEntry
    from ..registry import Registry
    from ..trained.evaluate import Evaluation

SHOWN = 3


def evaluate(
    context: typer.Context,
    run: RunName = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", metavar="PATH", help="Prompts: a file, a folder, a hub id or a registered name."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Split, slices too.")] = None,
    size: Annotated[int, typer.Option("--size", min=1, help="Most prompts.")] = 256,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the answers.")] = 0,
    rewards: Annotated[
        str | None,
        typer.Option("--rewards", metavar="YAML", help="What scores: '[{name: judge, model: ...}]'."),
    ] = None,
    reward: Rewards = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            metavar="NAME|YAML",
            help="What writes the answers instead: cached, or '{name: vllm_server, url: ...}'.",
        ),
    ] = None,
    plugin: Plugins = None,
    samples: Annotated[
        Path | None, typer.Option("--samples", metavar="F", help="Write all answers there (jsonl).")
    ] = None,
    as_json: Json = False,
    device: Device = None,
    trust_remote_code: Trust = False,
    verbose: Verbose = False,
) -> None:
    """Reward, win rate against the reference, KL and length on held-out prompts, with 95 % intervals."""
    from ..api import sampler_ready
    from ..atomic import write_output
    from ..recipe import RewardEntry, load
    from ..runs import plain
    from ..trained import open_run
    from ..trained.evaluate import evaluate as measure
    from ..trained.evaluate import sampler_of
    from ..trained.prompts import last_rl

    registry = open_registry(context.obj, plugin)
    entries = [RewardEntry.model_validate(entry) for entry in _parsed(rewards)]
    given = add_rewards(registry, reward)
    source = dataset_source(registry, dataset)
    if samples is not None and not samples.parent.is_dir():
        raise UsageError(f"--samples {samples}: there is no folder {samples.parent}.")
    path = find_run(run)
    recipe = load(path / "recipe.yaml", (), plugins=None)
    add_code_of(registry, path, recipe)
    check_names(registry, recipe, entries)
    writer = sampler_of(recipe, _named(sampler))
    sampler_ready(registry, *writer)
    opened = open_run(path, device=device, trust_remote_code=trust_remote_code, registry=registry)
    # A function that the recipe names is only brought back; another one scores instead.
    stage = last_rl(opened.recipe)
    named = set() if stage is None else {entry.name for entry in [*stage.rewards, *stage.eval.rewards]}
    entries += [RewardEntry(name=name) for name in given if name not in named]
    found = measure(
        opened,
        registry,
        dataset=source,
        split=split,
        rewards=entries,
        size=size,
        seed=seed,
        sampler=writer,
    )
    if as_json:
        figures = {name: asdict(value) for name, value in found.figures.items()}
        print(json.dumps(plain({"prompts": found.prompts, "figures": figures}), indent=2))
    else:
        show(found)
    if samples is not None:
        lines = (json.dumps(plain(row), ensure_ascii=False) for row in found.samples)
        write_output(samples, "".join(f"{line}\n" for line in lines))
        print(f"written: {samples}", file=sys.stderr)


def check_names(registry: Registry, recipe: Recipe, entries: Sequence[RewardEntry]) -> None:
    """Refuse unknown rewards before anything is loaded.

    Args:
        registry: what is known.
        recipe: of the run, whose last RL stage names what is used.
        entries: rewards that the command line names; with them, those of the run are not used.

    Raises:
        PluginError: a name is unknown; says how to give it.
    """
    from ..trained.prompts import last_rl

    stage = last_rl(recipe)
    used = [*entries] if entries or stage is None else [*stage.rewards, *stage.eval.rewards]
    for entry in used:
        registry.entry("rewards", entry.name)


def _parsed(text: str | None) -> list[Any]:
    import yaml

    if text is None:
        return []
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--rewards {text}: not YAML ({error}).") from error
    if not isinstance(given, list) or not all(isinstance(entry, dict) and "name" in entry for entry in given):
        raise UsageError(
            f"--rewards {text}: expected a list such as '[{{name: learned}}, {{name: length, target: 64}}]'."
        )
    return given


def _named(text: str | None) -> dict[str, Any] | None:
    """A sampler's name, and maybe its options."""
    import yaml

    if text is None:
        return None
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--sampler {text}: not YAML ({error}).") from error
    given = {"name": given} if isinstance(given, str) else given
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise UsageError(
            f"--sampler {text}: expected a name such as cached, or one with options such as "
            "'{name: vllm_server, url: http://localhost:8000}'."
        )
    return given


def show(found: Evaluation) -> None:
    """A table on stdout, and a few answers."""
    from rich.box import SIMPLE
    from rich.table import Table

    console = make_console()
    table = Table(
        "figure",
        "policy",
        "95 % interval",
        "reference",
        box=SIMPLE,
        title=f"{found.prompts} prompts",
        title_justify="left",
    )
    for name, value in found.figures.items():
        other = "" if value.reference is None else f"{value.reference:.3g}"
        table.add_row(name, f"{value.policy:.3g}", f"{value.low:.3g} to {value.high:.3g}", other)
    console.print(table)
    answers = Table("prompt", "policy", "reference", box=SIMPLE)
    for row in found.samples[:SHOWN]:
        prompt = row["prompt"] if isinstance(row["prompt"], str) else str(row["prompt"][-1].get("content"))
        answers.add_row(*(text.strip() for text in (prompt, row["policy"], row["reference"])))
    console.print(answers)
