"""`rlhf-peft cache`: list the rows that are kept on the disk, and remove them."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import typer

from ..errors import UsageError
from .options import Json, Yes, confirm

if TYPE_CHECKING:
    from ..data import cache

app = typer.Typer(
    help="List and clear the rows that are kept on the disk, so that they are read and encoded once."
)


@app.callback(invoke_without_command=True)
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List what is kept, the least recently used first, and how much of the disk it takes."""
    from rich.box import SIMPLE
    from rich.table import Table

    from ..data import cache
    from .terminal import make_console

    folder, entries = cache.root(), cache.entries()
    total, most = sum(entry.size for entry in entries), cache.limit()
    if as_json:
        plain_entries = [{**_plain(entry), "bytes": entry.size, "rows": entry.rows} for entry in entries]
        place = None if folder is None else str(folder)
        print(
            json.dumps({"folder": place, "bytes": total, "limit": most, "entries": plain_entries}, indent=2)
        )
        return
    if folder is None:
        print(f"The cache is switched off by {cache.FOLDER_VARIABLE}.", file=sys.stderr)
        return
    if not entries:
        print(f"{folder} holds nothing.", file=sys.stderr)
        return
    table = Table("kept", "made of", "rows", "size", "last used", box=SIMPLE)
    for entry in entries:
        plain = _plain(entry)
        table.add_row(plain["kind"], plain["about"], f"{entry.rows:,}", _size(entry.size), plain["used"])
    make_console().print(table)
    print(f"{folder}: {_size(total)} of at most {_size(most)}; {cache.LIMIT_VARIABLE} sets the limit in GB")


@app.command()
def clear(yes: Yes = False) -> None:
    """Remove all that is kept; it is made again when it is needed."""
    from ..data import cache

    folder, entries = cache.root(), cache.entries()
    if folder is None:
        raise UsageError(
            f"The cache is switched off by {cache.FOLDER_VARIABLE}, so it is not known where it is."
        )
    print(f"{folder}: {len(entries)} entries, {_size(sum(entry.size for entry in entries))}")
    if entries:
        confirm("Remove them?", yes)
    cache.clear()


def _plain(entry: cache.Entry) -> dict[str, str]:
    kind = entry.path.name.rpartition("-")[0]
    used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
    return {"path": str(entry.path), "kind": kind, "about": entry.about, "used": used}


def _size(size: int) -> str:
    """A number of bytes in kB, MB or GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"
