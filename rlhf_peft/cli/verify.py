"""`rlhf-peft verify`: check that a run's files are unchanged and can be loaded."""

from __future__ import annotations

import typer

from .options import RunName, Trust, Verbose, find_run, open_registry_of


def verify(
    context: typer.Context,
    run: RunName = None,
    trust_remote_code: Trust = False,
    verbose: Verbose = False,
) -> None:
    """Check every hash of a run, and load every adapter and head; one line a check. Exit 1 where one fails."""
    from .. import api

    failed = 0
    folder = find_run(run)
    registry = open_registry_of(context.obj, folder)
    for check in api.verify(folder, trust_remote_code=trust_remote_code, registry=registry):
        failed += check.wrong is not None
        print(
            f"{'ok' if check.wrong is None else 'FAILED'}  {check.what}{f': {check.wrong}' if check.wrong else ''}"
        )
    if failed:
        raise typer.Exit(1)
