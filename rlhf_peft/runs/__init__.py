"""Run folders: writing one, and reading what runs wrote."""

from .elsewhere import Elsewhere
from .folder import RunFolder
from .manifest import read_manifest, versions
from .read import read_metrics, read_samples

__all__ = ["Elsewhere", "RunFolder", "read_manifest", "read_metrics", "read_samples", "versions"]
