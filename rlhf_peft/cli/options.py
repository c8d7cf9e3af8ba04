"""Arguments that several commands take, and the functions that turn them into runs, recipes and registries."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import library_messages
from ..errors import RunFolderError, UsageError
from ..redact import scrub

if TYPE_CHECKING:
    from ..recipe import DatasetSource, Recipe
    from ..registry import Registry

log = logging.getLogger("rlhf_peft")


@dataclass
class Settings:
    """The values of the global options.

    Attributes:
        no_plugins: installed plugins are left out.
        traceback: show where in the code an error came from.
    """

    no_plugins: bool = False
    traceback: bool = False


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A path (with a / or ending in .yaml), or a shipped recipe's name."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[K=V]...", help="Override a value: stages.rl.rewards.length.weight=0.2"),
]
RunName = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="A name under runs/, or a path; nothing: the newest."),
]
Device = Annotated[str | None, typer.Option("--device", help="Instead of the recipe's.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that a model's repository brings.")
]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


def _show_all(verbose: bool) -> bool:
    if verbose:
        library_messages.show_all()
    return verbose


Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        callback=_show_all,
        is_eager=True,
        help="Show what other libraries say, too, not only in the run's log.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
Plugins = Annotated[list[Path] | None, typer.Option("--plugin", metavar="F.py", help="A plugin in one file.")]
Rewards = Annotated[
    list[str] | None,
    typer.Option("--reward", metavar="F.py:FUNC", help="A function of a file as a reward, by the name FUNC."),
]


def open_registry(
    settings: Settings,
    plugins: Sequence[Path] | None = None,
    *,
    strict: bool = False,
    quiet: bool = False,
    as_json: bool = False,
) -> Registry:
    """The registry of built-ins and plugins; a warning is logged for each plugin that was left out."""
    from ..registry import Registry

    log_to_stderr(quiet, as_json)
    registry = Registry.load(plugins or (), settings.no_plugins, strict_plugins=strict)
    for broken in registry.broken:
        log.warning("%s", broken)
    for loaded in registry.plugins:
        for note in loaded.notes:
            log.warning("%s %s as it was imported", loaded, note)
    return registry


def open_registry_of(settings: Settings, run: Path) -> Registry:
    """The registry of built-ins, installed plugins, and the plugin files copied into a run's `code/` folder."""
    registry = open_registry(settings, quiet=True)
    add_plugins_of(registry, run)
    return registry


def find_run(name: str | None, output_dir: Path = Path("runs")) -> Path:
    """The folder of a run: a name under runs/ or a path; for None the newest run, whose path is printed.

    Raises:
        RunFolderError: there is no such run.
    """
    from ..runs import is_run

    if name is None:
        runs = [path.parent for path in output_dir.glob("*/manifest.json") if is_run(path.parent)]
        if not runs:
            raise RunFolderError(f"{output_dir}/ holds no run. Give the folder of one.")
        newest = max(runs, key=lambda path: (path / "manifest.json").stat().st_mtime_ns)
        print(f"run: {newest}", file=sys.stderr)
        return newest
    for path in (Path(name), output_dir / name):
        if is_run(path):
            return path
    raise RunFolderError(f"{name}: no run folder, neither here nor under {output_dir}/.")


def add_rewards(registry: Registry, rewards: Sequence[str] | None) -> list[str]:
    """Register the functions that `--reward` names; returns their names."""
    from ..builtin.rewards.function import FunctionReward

    names = []
    for spec in rewards or ():
        path, colon, function = spec.rpartition(":")
        if not colon or not path or not function.isidentifier():
            raise UsageError(f"--reward {spec}: expected FILE.py:FUNCTION, such as rewards.py:answer_reward")
        names.append(registry.add_reward_function(path, function, FunctionReward))
    return names


def add_plugins_of(registry: Registry, run: Path) -> None:
    """Register the plugin files that a run used and that are not known, from the copies in its `code/` folder."""
    from ..runs.layout import CODE

    known = {plugin.name for plugin in registry.plugins}
    for file in sorted((run / CODE).glob("*.py")):
        if "hookimpl" in file.read_text(encoding="utf-8") and file.stem not in known:
            log.warning("%s: its copy of the plugin %s is used", run, file.name)
            registry.add_file(file)


def add_code_of(registry: Registry, run: Path, recipe: Recipe) -> list[str]:
    """Register plugins and reward functions that a run's recipe names, from the copies in the run's `code/` folder.

    Names that are registered already stay as they are.

    Args:
        registry: the installed plugins, and what the command line names.
        run: the run's folder.
        recipe: of the run.

    Returns:
        The names of the reward functions that were registered.
    """
    from ..builtin.rewards.function import FunctionReward
    from ..recipe import RlStage
    from ..runs.layout import CODE

    add_plugins_of(registry, run)
    files = sorted((run / CODE).glob("*.py"))
    stages = [stage for stage in recipe.stages if isinstance(stage, RlStage)]
    names = dict.fromkeys(entry.name for stage in stages for entry in [*stage.rewards, *stage.eval.rewards])
    registered = []
    for name in names:
        file = None if registry.has("rewards", name) else next((f for f in files if defines(f, name)), None)
        if file is not None:
            log.warning("%s: the reward %s is the function in its code/%s", run, name, file.name)
            registered.append(registry.add_reward_function(file, name, FunctionReward))
    return registered


def defines(file: Path, name: str) -> bool:
    """Whether a Python file defines a function of that name; the file is parsed, and not executed."""
    import ast

    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return False
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name for node in tree.body
    )


def open_recipe(
    settings: Settings,
    recipe: str,
    overrides: Sequence[str] | None,
    plugins: Sequence[Path] | None,
    rewards: Sequence[str] | None,
    *,
    strict: bool = False,
    quiet: bool = False,
    as_json: bool = False,
) -> tuple[Recipe, Registry]:
    """Load a recipe; returns it with the registry it was checked against."""
    from ..recipe import load

    registry = open_registry(settings, plugins, strict=strict, quiet=quiet, as_json=as_json)
    names = add_rewards(registry, rewards)
    return load(recipe, overrides or (), plugins=registry, rewards=names), registry


def dataset_source(registry: Registry, name: str | None) -> DatasetSource | None:
    """The dataset that an option names: a registered one, or a path or hub id; None for nothing."""
    from ..recipe import DatasetSource

    if name is None:
        return None
    if name in registry.names("datasets"):
        return DatasetSource(name=name)
    return DatasetSource(path=name)


def confirm(question: str, yes: bool) -> None:
    """Ask a question on the terminal, unless `yes` is set.

    Raises:
        UsageError: there is no terminal to ask on, or the answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nothing was changed: there is no terminal to ask on. Say --yes.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was changed.")


def log_to_stderr(quiet: bool, as_json: bool = False) -> None:
    """Send this package's log to stderr: only warnings if `quiet`, and as JSON lines if `as_json`."""
    logger = logging.getLogger("rlhf_peft")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    for handler in [*logger.handlers]:
        if isinstance(handler, _ToStderr | library_messages.OwnLog):
            logger.removeHandler(handler)
    logger.addHandler(_JsonToStderr() if as_json else _ToStderr())
    logger.addHandler(library_messages.OwnLog())
    library_messages.show_as_json(as_json)
    logger.propagate = False


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        print(scrub(f"{level}{record.getMessage()}"), file=sys.stderr)


class _JsonToStderr(_ToStderr):
    def emit(self, record: logging.LogRecord) -> None:
        event = {"event": "log", "level": record.levelname.lower(), "text": scrub(record.getMessage())}
        print(json.dumps(event, ensure_ascii=False), file=sys.stderr)
