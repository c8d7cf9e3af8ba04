"""The files of a run's folder, making a new folder, and the recipe as it is written there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from filelock import BaseFileLock

from ..atomic import remove_leftovers
from ..errors import RunFolderError
from ..redact import scrub
from .lock import lock
from .manifest import FILE, FORMAT, VERSION, versions, write_manifest
from .read import METRICS, SAMPLES
from .safe_paths import check_free, remove

RECIPE = "recipe.yaml"
LOG = "run.log"
ADAPTERS = "adapters"
CODE = "code"
RUN_FILES = (RECIPE, METRICS, SAMPLES, "report.html", LOG, ADAPTERS, CODE, "checkpoints", "tracking", FILE)
"""All that a run writes. The manifest is removed last, because it marks the folder as a run's."""


def make_folder(path: Path, overwrite: bool, now: float) -> tuple[BaseFileLock, dict[str, Any]]:
    """Make and lock the folder, and remove an earlier run; returns the lock and a manifest of status `running`.

    Args:
        path: the run's folder.
        overwrite: replace an earlier run.
        now: when the run begins, in seconds since 1970.

    Raises:
        RunFolderError: something is in the way, or the folder cannot be written.
    """
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "name": path.name,
        "status": "running",
        "started": now,
        "stages_done": [],
        "versions": versions(),
    }
    try:
        check_free(path, overwrite)
        path.mkdir(parents=True, exist_ok=True)
        run_lock = lock(path)
        check_free(path, overwrite)
        remove_leftovers(path)
        # The new manifest comes first, so that the folder counts as an unfinished run while the earlier one is removed.
        write_manifest(path, manifest)
        for name in RUN_FILES[:-1]:
            remove(path / name)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be made: {error}") from None
    return run_lock, manifest


def parsed(recipe: str) -> Any:
    """The plain data of a recipe's text that this program has written itself.

    PyYAML's parser in C is ten times as fast as the one in Python, but says other words where a text is wrong.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(recipe)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def without_credentials(recipe: str) -> str:
    """A recipe's text as it is written into the run folder; unchanged where it holds no credentials."""
    data = parsed(recipe)
    clean = scrub(data)
    return (
        recipe if clean == data else yaml.safe_dump(clean, sort_keys=False, allow_unicode=True, width=2**20)
    )
