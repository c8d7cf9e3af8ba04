"""`rlhf-peft doctor`: what will and will not work on this machine, and how to mend it."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from .options import Json


def doctor(context: typer.Context, as_json: Json = False) -> None:
    """Look at versions, device, quantization, disk and plugins; one line a check. Exit 1 where something is broken."""
    from ..doctor import checks

    found = list(checks(no_plugins=context.obj.no_plugins))
    if as_json:
        print(json.dumps([asdict(check) for check in found], indent=2))
    else:
        for check in found:
            remedy = f" {check.remedy}" if check.remedy else ""
            print(f"{check.state:<5}  {check.what}: {check.found}{remedy}")
    if any(check.state == "wrong" for check in found):
        raise typer.Exit(1)
