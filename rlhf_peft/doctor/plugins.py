"""Checks of the installed plugins, which are imported in another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from .. import entry_points, foreign
from .finding import Finding

PLUGIN_LIMIT = foreign.IMPORT_LIMIT + 120
"""Most seconds for the import of all plugins."""


def check_plugins() -> Iterator[Finding]:
    """Import the plugins in another process, because one of them may end the process or never return."""
    rows, _ = _list_plugins({}, None)
    if rows is None:
        yield from _crashing_plugins()
        return
    for row in rows:
        plugin = f"plugin {row['name']} ({row['distribution']} {row['version']})"
        if row["status"] == "broken":
            remedy = f"rlhf-peft plugins uninstall {row['distribution']}"
            yield Finding("plugin", "wrong", f"{plugin} was left out: {row['reason']}", remedy)
        for note in row["notes"]:
            yield Finding("plugin", "note", f"{plugin} {note} as it was imported")
    working = {row["distribution"] for row in rows if row["status"] == "ok"}
    yield Finding("plugins", "ok", f"{len(working)} distributions bring something")


def _crashing_plugins() -> Iterator[Finding]:
    """Find the plugins that end the process that imports them, by importing each alone."""
    points = [point for point in entry_points.points(entry_points.PLUGINS) if not point.disabled]
    for point in points:
        others = {name for other in points if other is not point for name in (other.name, other.distribution)}
        names = ",".join(sorted(others - {point.name, point.distribution}))
        rows, ended = _list_plugins({entry_points.DISABLE: names}, subprocess.DEVNULL)
        if rows is None:
            yield Finding(
                "plugin",
                "wrong",
                f"plugin {point.name} ({point.distribution} {point.version}) {ended} as it was imported.",
                f"rlhf-peft plugins uninstall {point.distribution}, or RLHF_PEFT_DISABLE_PLUGINS={point.distribution}",
            )


def _list_plugins(
    variables: Mapping[str, str], stderr: int | None
) -> tuple[list[dict[str, Any]] | None, str]:
    """Run `plugins list` in another process.

    Args:
        variables: of the environment, beside this process's own.
        stderr: of the process, as for `subprocess.run`.

    Returns:
        The rows and an empty text; or None and how the process ended, where it returned no rows.
    """
    command = [sys.executable, "-m", "rlhf_peft", "plugins", "list", "--json"]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=PLUGIN_LIMIT,
            check=False,
        )
        rows: list[dict[str, Any]] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return None, f"has not come back within {PLUGIN_LIMIT:g} s"
    except ValueError:
        return None, f"ended the process with status {done.returncode}"
    return rows, ""
