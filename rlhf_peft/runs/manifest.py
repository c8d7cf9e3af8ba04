"""manifest.json: a run's versions, plugins, seeds and hashes, without credentials or environment variables."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..atomic import write_text
from ..bounded_read import read_small
from ..errors import RunFolderError
from ..redact import scrub

FILE = "manifest.json"
FORMAT = "rlhf-peft run"
VERSION = 1
MOST_BYTES = 16 * 2**20
STATUSES = ("running", "done", "failed", "stopped")
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "trl",
    "accelerate",
    "datasets",
    "safetensors",
)
_KINDS: dict[str, type] = {
    "status": str,
    "name": str,
    "stages_done": list,
    "artifacts": dict,
    "versions": dict,
    "code": dict,
    "resumed": list,
}


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results depend on; None for one that is not installed."""
    installed: dict[str, str | None] = {"python": platform.python_version(), "rlhf-peft": __version__}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def other_versions(manifest: Mapping[str, Any]) -> str:
    """The packages whose version differs from the one that the run was last written with, as text.

    An example is "torch 2.12.0 (here 2.13.0)". Python, this package, and packages that the manifest does not name are
    left out. The text is empty if all versions are the same.
    """
    then, now = manifest.get("versions", {}), versions()
    return ", ".join(
        f"{name} {then[name] or 'none'} (here {now[name] or 'none'})"
        for name in PACKAGES
        if name in then and then[name] != now[name]
    )


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a run folder."""
    text = json.dumps(scrub(manifest), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / FILE, text + "\n")


class ManifestLost(RunFolderError):
    """A folder has no manifest, or one that is empty or cut short."""


def rebuilt(folder: Path, stages: Sequence[str]) -> dict[str, Any]:
    """A new manifest for a run whose manifest was lost.

    Args:
        folder: of the run.
        stages: names of the stages that are done.
    """
    head = {"format": FORMAT, "version": VERSION, "name": folder.name, "status": "running"}
    return {**head, "stages_done": list(stages), "versions": versions()}


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read the manifest of a run folder.

    Raises:
        RunFolderError: there is none, or it is no run of this package.
    """
    path = Path(folder) / FILE
    try:
        manifest = json.loads(read_small(path, MOST_BYTES).decode("utf-8"))
    except FileNotFoundError:
        raise ManifestLost(f"{folder}: not a run folder, it has no {FILE}.{remedy(path.parent)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestLost(f"{path}: not readable as JSON: {error}.{remedy(path.parent)}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RunFolderError(f"{path}: not the manifest of a run of rlhf-peft")
    version = manifest.get("version")
    if type(version) is not int or version > VERSION:
        raise RunFolderError(
            f"{path}: manifest version {version}; this rlhf-peft reads {VERSION}. Upgrade rlhf-peft."
        )
    for key, kind in _KINDS.items():
        if not isinstance(manifest.get(key, kind()), kind):
            raise RunFolderError(f"{path}: {key} is {type(manifest[key]).__name__}, expected {kind.__name__}")
    return manifest


def remedy(folder: Path) -> str:
    """Advice for a run whose manifest is lost, as text; empty where nothing can be done."""
    if not any(folder.glob("checkpoints/*/checkpoint.json")):
        return ""
    return f" It holds checkpoints: rlhf-peft run RECIPE --resume goes on from them and makes {FILE} again."


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run of this package."""
    try:
        read_manifest(folder)
    except RunFolderError:
        return False
    return True
