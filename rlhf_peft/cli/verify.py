"""`rlhf-peft verify`: whether a run's files are what they were, and load."""

from __future__ import annotations

import typer

from .options import RunName, Trust, Verbose, find_run


def verify(
    run: RunName = None,
    trust_remote_code: Trust = False,
    verbose: Verbose = False,
) -> None:
    """Check every hash of a run, and load every adapter and head; one line a check. Exit 1 where one fails."""
    from .. import api

    failed = 0
    for check in api.verify(find_run(run), trust_remote_code=trust_remote_code):
        failed += check.wrong is not None
        print(
            f"{'ok' if check.wrong is None else 'FAILED'}  {check.what}{f': {check.wrong}' if check.wrong else ''}"
        )
    if failed:
        raise typer.Exit(1)
