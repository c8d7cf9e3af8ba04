"""`rlhf-peft recipes`: show and copy the recipes that are shipped, and convert TRL's configurations."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .options import Json

app = typer.Typer(help="List, show and copy the recipes that are shipped; take over TRL's.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A shipped recipe.")]


@app.callback(invoke_without_command=True)
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the shipped recipes."""
    from ..recipe import shipped

    recipes = [(name, shipped.summary(name), shipped.path(name)) for name in shipped.names()]
    if as_json:
        rows = [{"name": name, "summary": summary, "path": str(path)} for name, summary, path in recipes]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    width = max((len(name) for name, _, _ in recipes), default=0)
    for name, summary, _ in recipes:
        print(f"{name:<{width}}  {summary}".rstrip())


@app.command()
def show(name: Name) -> None:
    """Print a shipped recipe."""
    from ..recipe import shipped

    print(shipped.text(name), end="")


@app.command()
def copy(
    name: Name,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="A file, or a folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[K=V]...", help="Values to write in.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Copy a shipped recipe to start from, with K=V written in; prints where it went."""
    from ..atomic import write_output
    from ..recipe import edit_text, shipped

    shipped.path(name)
    text = edit_text(name, overrides or ())
    target = _target(dest, name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not force:
            raise FileExistsError
        write_output(target, text)
    except FileExistsError:
        raise UsageError(f"{target}: there already. Replace it with --force, or name another file.") from None
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error}") from None
    print(target)
    print(f"next: rlhf-peft run {_argument(target)}", file=sys.stderr)


@app.command("from-trl")
def from_trl(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TRL's configuration, YAML or JSON.")],
    trainer: Annotated[
        str | None, typer.Option(metavar="NAME", help="sft, reward, dpo, kto, grpo, rloo; default: guessed.")
    ] = None,
) -> None:
    """Print a TRL configuration as a recipe; what has no equivalent goes to stderr and into its comment."""
    from ..recipe import convert

    conversion = convert(file, trainer)
    print(conversion.text, end="")
    for key, note in conversion.notes:
        print(f"{key}: {note}", file=sys.stderr)


def _target(dest: str, name: str) -> Path:
    path = Path(dest)
    if dest.endswith(("/", "\\")) or path.is_dir():
        return path / f"{name.rpartition(':')[2]}.yaml"
    return path if path.suffix in (".yaml", ".yml") else path.with_name(path.name + ".yaml")


def _argument(path: Path) -> str:
    text = str(path)
    return f"'{text}'" if " " in text else text
