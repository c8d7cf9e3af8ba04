"""`rlhf-peft plugins`: list, show, install, check and remove plugins, and write new ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import EXIT_FAILED, PluginError, UsageError
from .options import Json, Yes, confirm

if TYPE_CHECKING:
    from ..registry import Registry

app = typer.Typer(help="List, show, install, write and check plugins.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A distribution, a plugin, or what one registers.")]


@app.callback(invoke_without_command=True)
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def _registry(context: typer.Context) -> Registry:
    """The registry of what is installed; the commands here list broken plugins, so no warning is logged."""
    from ..registry import Registry

    return Registry.load(no_plugins=context.obj.no_plugins)


@app.command("list")
def list_(
    context: typer.Context,
    as_json: Json = False,
    requirements: Annotated[
        bool, typer.Option("--requirements", help="Lines for `pip install -r` and a recipe's `plugins`.")
    ] = False,
) -> None:
    """List every plugin: version, what it registers and listens to; broken ones with the reason."""
    registry = _registry(context)
    from .plugin_pages import as_rows, as_table, requirement_lines

    rows = as_rows(registry)
    if requirements:
        print(*requirement_lines(rows), sep="\n", end="\n" if requirement_lines(rows) else "")
    elif as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print(as_table(rows))


@app.command()
def show(
    context: typer.Context,
    name: Name,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown page, for a README.")] = False,
) -> None:
    """Show one plugin: who offers it, what it registers, and the options of each."""
    registry = _registry(context)
    from .plugin_pages import page

    print(page(registry, name, markdown=markdown), end="")


@app.command()
def install(
    specs: Annotated[
        list[str] | None, typer.Argument(metavar="SPEC...", help="Names with versions, archives or folders.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("-r", "--recipe", metavar="RECIPE", help="What this recipe requires.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Install plugins here; torch, transformers, peft and bitsandbytes stay as they are."""
    requirements = [*(specs or ()), *(_required(recipe) if recipe else ())]
    if not requirements:
        if recipe:
            print(f"{recipe}: requires no plugins.", file=sys.stderr)
            return
        raise UsageError("nothing to install. Give a name, a folder, or -r RECIPE.")
    from ..packages import Installer

    installer = Installer()
    changes = installer.plan(requirements)
    if not changes:
        print("everything is installed already.", file=sys.stderr)
        return
    print(*changes, sep="\n")
    confirm("Install these?", yes)
    installer.install(requirements)
    print("next: rlhf-peft plugins list", file=sys.stderr)


@app.command()
def uninstall(name: Name, yes: Yes = False) -> None:
    """Remove a plugin's distribution; what it needed stays."""
    distribution, version = _installed(name)
    from ..packages import Installer

    print(f"- {distribution} {version}")
    confirm("Remove it?", yes)
    Installer().uninstall(distribution)


@app.command()
def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the package: rlhf-peft-brevity.")],
    kind: Annotated[
        str, typer.Option("--kind", help="reward, sampler, algorithm, environment, quantizer, observer.")
    ],
    dest: Annotated[
        Path | None, typer.Option("--dest", help="The package's folder; default: the name, here.")
    ] = None,
) -> None:
    """Write a plugin's package: its module, options, README, tests and CI; the tests pass at once."""
    from ..packages.template import registered_name, write

    folder = dest or Path(name)
    files = write(name, kind, folder)
    short = registered_name(name)
    if kind != "observer" and _registry(context).has(f"{kind}s", short):
        warning = (
            f"warning: the {kind} {short} is there already; register another name before you install this."
        )
        print(warning, file=sys.stderr)
    print(*files, sep="\n")
    location = folder if folder.is_absolute() else f"./{folder}"
    print(f"next: (cd {location} && pytest) && rlhf-peft plugins install {location}", file=sys.stderr)


@app.command()
def check(
    context: typer.Context,
    plugin: Annotated[
        str, typer.Argument(metavar="PATH or NAME", help="A file, a package's folder, or what is installed.")
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME.KEY=VALUE]...", help="Options of what it registers: brevity.target=20"),
    ] = None,
) -> None:
    """Check a plugin against the rules of its kind; exits 1 where one is broken."""
    from .plugin_pages import check_findings, read_options

    findings = check_findings(plugin, read_options(options or ()), lambda: _registry(context))
    print(*findings, sep="\n")
    if any(finding.problem for finding in findings):
        raise typer.Exit(EXIT_FAILED)


def _required(recipe: str) -> list[str]:
    """The `plugins` that a recipe requires; the recipe is not checked, because its plugins may be missing."""
    from packaging.requirements import InvalidRequirement, Requirement

    from ..recipe.load import open_source

    lines = open_source(recipe).data.get("plugins") or []
    if not isinstance(lines, list):
        raise UsageError(f"{recipe}: plugins: expected a list of requirements such as rlhf-peft-x>=0.1.")
    for line in lines:
        try:
            requirement = Requirement(str(line))
        except InvalidRequirement:
            raise UsageError(f"{recipe}: plugins: {line!r} is no requirement.") from None
        if requirement.url:
            raise UsageError(f"{recipe}: plugins: {line!r}: a recipe names a distribution, never a URL.")
    return [str(line) for line in lines]


def _installed(name: str) -> tuple[str, str]:
    """Distribution and version of an installed plugin, read from metadata alone because it may be broken."""
    from packaging.utils import canonicalize_name

    from .. import entry_points

    groups = (entry_points.PLUGINS, entry_points.COMMANDS, entry_points.RECIPES)
    known = {point.distribution: point for group in groups for point in entry_points.points(group)}
    canonical = canonicalize_name(name)
    by_name = {
        p.distribution: p for p in known.values() if canonical in (p.distribution, canonicalize_name(p.name))
    }
    if len(by_name) == 1:
        ((distribution, point),) = by_name.items()
        return distribution, point.version
    if by_name:
        raise PluginError(f"{name} is a plugin of {' and of '.join(by_name)}. Give the distribution.")
    raise PluginError(f"no plugin {name!r} is installed. Installed: {', '.join(sorted(known)) or 'none'}.")
