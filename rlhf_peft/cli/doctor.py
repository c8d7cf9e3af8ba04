"""`rlhf-peft doctor`: what works on this machine, what does not, and how to repair it."""

from __future__ import annotations

import json

import typer

from .options import Json


def doctor(context: typer.Context, as_json: Json = False) -> None:
    """Look at versions, device, quantization, disk and plugins; one line a check. Exit 1 where something is broken."""
    from ..doctor import checks

    results = list(checks(no_plugins=context.obj.no_plugins))
    if as_json:
        print(json.dumps([check.as_dict() for check in results], indent=2))
    else:
        for check in results:
            remedy = f" {check.remedy}" if check.remedy else ""
            print(f"{check.state:<5}  {check.what}: {check.detail}{remedy}")
    if any(check.state == "wrong" for check in results):
        raise typer.Exit(1)
