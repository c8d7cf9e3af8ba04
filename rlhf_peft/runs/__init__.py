"""Run folders: writing one, and reading earlier runs."""

from .checkpoints import Checkpoint, Checkpoints
from .folder import RunFolder
from .history import History, distinct, histories, remove_run
from .manifest import is_run, other_versions, read_manifest, versions
from .null_folder import NullFolder
from .plain import plain
from .read import read_metrics, read_samples
from .verify import Check, verify_files

__all__ = [
    "Check",
    "Checkpoint",
    "Checkpoints",
    "History",
    "NullFolder",
    "RunFolder",
    "distinct",
    "histories",
    "is_run",
    "other_versions",
    "plain",
    "read_manifest",
    "read_metrics",
    "read_samples",
    "remove_run",
    "verify_files",
    "versions",
]
