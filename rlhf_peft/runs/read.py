"""Reads the metrics and samples of a run, also while the run is still writing them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import RunFolderError

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"


def read_metrics(run: str | Path, stage: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a metric that was not finite is NaN.

    Args:
        run: the run folder.
        stage: only the lines of this stage; None: all.

    Raises:
        RunFolderError: a line, other than a last one that is half written, is not JSON.
    """
    rows = list(read_lines(Path(run) / METRICS))
    selected = rows if stage is None else [row for row in rows if row.get("stage") == stage]
    return [{key: math.nan if value is None else value for key, value in row.items()} for row in selected]


def read_samples(run: str | Path) -> list[dict[str, Any]]:
    """The lines of samples.jsonl."""
    return list(read_lines(Path(run) / SAMPLES))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines; a last line that is half written is left out.

    Raises:
        RunFolderError: a line is no JSON object.
    """
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        half_written = number == len(lines)
        if half_written or not line:
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            raise RunFolderError(f"{path}, line {number}: not JSON") from None
        if not isinstance(row, dict):
            raise RunFolderError(f"{path}, line {number}: not an object")
        yield row
