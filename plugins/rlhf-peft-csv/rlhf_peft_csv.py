"""Writes `csv/<stage>.csv` in the run's folder while it goes on, and tells a webhook when it ends.

The URL is in the environment variable `RLHF_PEFT_WEBHOOK`; without it nothing is sent. What is sent is
`{"run": name, "status": "done", "metrics": {...}}`.
"""

from __future__ import annotations

import csv
import json
import os
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from rlhf_peft.plugin import PluginError, RunView, hookimpl

HOOK_API = 1
WEBHOOK = "RLHF_PEFT_WEBHOOK"
TIMEOUT = 10.0


@hookimpl
def rlhf_peft_step_end(run: RunView, stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Append a row; where there are new figures, the file is written anew with more columns."""
    file = run.folder / "csv" / f"{stage}.csv"
    row = {"step": step, **metrics}
    columns = _columns(file)
    wanted = [*columns, *(name for name in row if name not in columns)]
    if wanted == columns:
        with file.open("a", encoding="utf-8", newline="") as stream:
            csv.DictWriter(stream, columns).writerow(row)
    else:
        _rewrite(file, wanted, row)


def _columns(file: Path) -> list[str]:
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        return next(csv.reader(stream), [])


def _rewrite(file: Path, columns: list[str], row: Mapping[str, object]) -> None:
    """The rows so far and one more, written aside and put in place whole."""
    before: list[dict[str, str]] = []
    if file.exists():
        with file.open(encoding="utf-8", newline="") as stream:
            before = list(csv.DictReader(stream))
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".new")
    with aside.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(before)
        writer.writerow(row)
    aside.replace(file)


@hookimpl
def rlhf_peft_run_end(run: RunView, status: str, metrics: Mapping[str, float]) -> None:
    """Post how it ended, where a URL is given."""
    url = os.environ.get(WEBHOOK, "")
    if not url:
        return
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise PluginError(f"{WEBHOOK}: expected a URL that begins with https:// or http://.")
    body = json.dumps({"run": run.name, "status": status, "metrics": dict(metrics)}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        answer.read()
