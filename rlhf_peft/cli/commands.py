"""Commands that plugins bring: listed by name from their metadata, imported when they are used.

An entry point of group `rlhf_peft.commands` names a typer app, a click command or a plain function with typer's
annotations. The error of a broken one is shown when it is used. The program's own commands come first.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import entry_points, foreign
from ..errors import PluginError

Point = entry_points.Point


class PluginGroup(TyperGroup):
    """The program's commands, followed by those of plugins."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands; no plugin is imported."""
        built_in = super().list_commands(ctx)
        return [*built_in, *(name for name in _points(ctx) if name not in built_in)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The program's command, or one that imports its plugin when it is invoked; None: there is none."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        point = _points(ctx).get(cmd_name)
        return None if point is None else _deferred(point)


def _points(ctx: Any) -> dict[str, Point]:
    """Entry points of commands by name; where two distributions use one name, the first is taken."""
    if getattr(ctx.obj, "no_plugins", False):
        return {}
    points: dict[str, Point] = {}
    for point in entry_points.points(entry_points.COMMANDS):
        if not point.disabled:
            points.setdefault(point.name, point)
    return points


def _deferred(point: Point) -> TyperCommand:
    """A command that takes any arguments, `--help` included, and passes them to the plugin's command."""
    return _Deferred(
        point.name,
        help=f"From the plugin {point.distribution} {point.version}.",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
        callback=lambda: None,
        point=point,
    )


class _Deferred(TyperCommand):
    def __init__(self, name: str, *, point: Point, **settings: Any) -> None:
        super().__init__(name, **settings)
        self.point = point

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return ctx.args

    def invoke(self, ctx: Any) -> Any:
        command = load(self.point)
        with command.make_context(ctx.info_name, list(ctx.args), parent=ctx.parent) as inner:
            return command.invoke(inner)


def load(point: Point) -> Any:
    """Import the command that an entry point names.

    Raises:
        PluginError: its import failed, or it is no command.
    """
    where = f"command {point.name} ({point.distribution} {point.version})"
    try:
        with foreign.importing(
            where, f"Leave its package out: RLHF_PEFT_DISABLE_PLUGINS={point.distribution}"
        ):
            return _as_command(point.load())
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"{where}: its import failed: {message}. The other commands work.") from error


def _as_command(command: Any) -> Any:
    if hasattr(command, "make_context"):
        return command
    if isinstance(command, typer.Typer):
        return typer.main.get_command(command)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    return typer.main.get_command(app)
