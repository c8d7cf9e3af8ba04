"""Commands that plugins bring: listed by name from their metadata, imported when they are used.

An entry point of group `rlhf_peft.commands` names a typer app, a click command or a plain function with typer's
annotations. What a broken one raises is told when it is used; the program's own verbs come first.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import entry_points, foreign
from ..errors import PluginError

Point = entry_points.Point


class PluginGroup(TyperGroup):
    """The program's verbs, and after them what plugins bring."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names only; nothing is imported."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in _points(ctx) if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Our verb, or one that imports its plugin when it is invoked."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        point = _points(ctx).get(cmd_name)
        return None if point is None else _deferred(point)


def _points(ctx: Any) -> dict[str, Point]:
    """By name; of two distributions with one name the first has it."""
    if getattr(ctx.obj, "no_plugins", False):
        return {}
    found: dict[str, Point] = {}
    for point in entry_points.points(entry_points.COMMANDS):
        if not point.disabled:
            found.setdefault(point.name, point)
    return found


def _deferred(point: Point) -> TyperCommand:
    """A command that takes any arguments and hands them on, `--help` too."""
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
    """The command that an entry point stands for.

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
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"{where}: its import failed: {told}. The other commands work.") from error


def _as_command(found: Any) -> Any:
    if hasattr(found, "make_context"):
        return found
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(found)
    return typer.main.get_command(app)
