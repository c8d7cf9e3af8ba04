"""Run folders: writing one, and reading what runs wrote."""

from .folder import RunFolder
from .manifest import read_manifest, versions
from .read import read_metrics, read_samples

__all__ = ["RunFolder", "read_manifest", "read_metrics", "read_samples", "versions"]
