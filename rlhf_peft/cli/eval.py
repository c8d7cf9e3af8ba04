"""`rlhf-peft eval`: compare a run's policy with its reference, with 95 % intervals."""

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
    from ..recipe import RewardEntry, load
    from ..trained import open_run
    from ..trained.evaluate import evaluate as measure
    from ..trained.evaluate import sampler_of

    registry = open_registry(context.obj, plugin)
    entries = [RewardEntry.model_validate(entry) for entry in _reward_entries(rewards)]
    function_names = add_rewards(registry, reward)
    source = dataset_source(registry, dataset)
    if samples is not None and not samples.parent.is_dir():
        raise UsageError(f"--samples {samples}: there is no folder {samples.parent}.")
    path = find_run(run)
    recipe = load(path / "recipe.yaml", (), plugins=None)
    add_code_of(registry, path, recipe)
    check_names(registry, recipe, entries)
    sampler_choice = sampler_of(recipe, _sampler_choice(sampler))
    sampler_ready(registry, *sampler_choice)
    opened = open_run(path, device=device, trust_remote_code=trust_remote_code, registry=registry)
    # A `--reward` function that the recipe names only supplies its code; any other replaces the recipe's rewards.
    recipe_names = {entry.name for entry in _recipe_rewards(opened.recipe)}
    entries += [RewardEntry(name=name) for name in function_names if name not in recipe_names]
    evaluation = measure(
        opened,
        registry,
        dataset=source,
        split=split,
        rewards=entries,
        size=size,
        seed=seed,
        sampler=sampler_choice,
    )
    if as_json:
        print(_as_json(evaluation))
    else:
        show(evaluation)
    if samples is not None:
        _write_samples(evaluation, samples)


def _as_json(evaluation: Evaluation) -> str:
    from ..runs import plain

    metrics = {name: asdict(value) for name, value in evaluation.metrics.items()}
    return json.dumps(plain({"prompts": evaluation.prompts, "figures": metrics}), indent=2)


def _write_samples(evaluation: Evaluation, file: Path) -> None:
    """Write all answers to a file of JSON lines."""
    from ..atomic import write_output
    from ..runs import plain

    lines = (json.dumps(plain(row), ensure_ascii=False) for row in evaluation.samples)
    write_output(file, "".join(f"{line}\n" for line in lines))
    print(f"written: {file}", file=sys.stderr)


def _recipe_rewards(recipe: Recipe) -> list[RewardEntry]:
    """The rewards of a recipe's last RL stage and of its evaluation; empty where there is no such stage."""
    from ..trained.prompts import last_rl

    stage = last_rl(recipe)
    return [] if stage is None else [*stage.rewards, *stage.eval.rewards]


def check_names(registry: Registry, recipe: Recipe, entries: Sequence[RewardEntry]) -> None:
    """Refuse unknown rewards before anything is loaded.

    Args:
        registry: with every reward that is known.
        recipe: of the run; the rewards of its last RL stage are used.
        entries: rewards that the command line names; with them, those of the run are not used.

    Raises:
        PluginError: a name is unknown; the message says how to supply it.
    """
    for entry in entries or _recipe_rewards(recipe):
        registry.entry("rewards", entry.name)


def _reward_entries(text: str | None) -> list[Any]:
    """Parse `--rewards`: a list of mappings, each with a `name`; empty where it is not given.

    Raises:
        UsageError: the text is not YAML, or no such list.
    """
    import yaml

    if text is None:
        return []
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--rewards {text}: not YAML ({error}).") from error
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and "name" in entry for entry in entries
    ):
        raise UsageError(
            f"--rewards {text}: expected a list such as '[{{name: learned}}, {{name: length, target: 64}}]'."
        )
    return entries


def _sampler_choice(text: str | None) -> dict[str, Any] | None:
    """Parse `--sampler`: the sampler's `name` and its options as a mapping; None where it is not given.

    Raises:
        UsageError: the text is not YAML, or has no name.
    """
    import yaml

    if text is None:
        return None
    try:
        choice = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--sampler {text}: not YAML ({error}).") from error
    choice = {"name": choice} if isinstance(choice, str) else choice
    if not isinstance(choice, dict) or not isinstance(choice.get("name"), str):
        raise UsageError(
            f"--sampler {text}: expected a name such as cached, or one with options such as "
            "'{name: vllm_server, url: http://localhost:8000}'."
        )
    return choice


def show(evaluation: Evaluation) -> None:
    """Print the metrics as a table on stdout, and a few answers."""
    from rich.box import SIMPLE
    from rich.table import Table

    console = make_console()
    table = Table(
        "metric",
        "policy",
        "95 % interval",
        "reference",
        box=SIMPLE,
        title=f"{evaluation.prompts} prompts",
        title_justify="left",
    )
    for name, value in evaluation.metrics.items():
        other = "" if value.reference is None else f"{value.reference:.3g}"
        table.add_row(name, f"{value.policy:.3g}", f"{value.low:.3g} to {value.high:.3g}", other)
    console.print(table)
    answers = Table("prompt", "policy", "reference", box=SIMPLE)
    for row in evaluation.samples[:SHOWN]:
        prompt = row["prompt"] if isinstance(row["prompt"], str) else str(row["prompt"][-1].get("content"))
        answers.add_row(*(text.strip() for text in (prompt, row["policy"], row["reference"])))
    console.print(answers)
