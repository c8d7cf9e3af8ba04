"""`rlhf-peft report`: write the report of one or several runs as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Verbose, find_run


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN...]", help="Names under runs/, or paths; several overlay. Nothing: the newest."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="F", help="Default: report.html in the (first) run's folder."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write the report of a run, or of several overlaid: curves, and the answers to search and sort."""
    from ..analysis.report import report as page_of
    from ..atomic import write_output, write_text
    from ..runs import History

    names: list[str | None] = [*runs] if runs else [None]
    histories = [History.of(find_run(name)) for name in names]
    page = page_of(histories)
    if output is not None:
        write_output(output, page)
        print(output)
        return
    target = histories[0].path / "report.html"
    write_text(target, page)
    print(target)
