"""A run's folder while it is written.

A planned folder is created when something is first written into it, and only then is an earlier run removed: a run
that ends before it has trained anything leaves the disk as it was. Files of somebody else are never replaced.

    <output_dir>/<name>/
      recipe.yaml  manifest.json  metrics.jsonl  samples.jsonl  report.html
      adapters/<role>/  code/  checkpoints/  tracking/  run.log

The engine writes adapters and heads; `read` and `history` read what a run wrote.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

from filelock import BaseFileLock

from ..atomic import copy_file, write_text
from ..errors import RunFolderError
from .clock import RunClock, last_time
from .layout import ADAPTERS, CODE, LOG, RECIPE, RUN_FILES, make_folder, without_credentials
from .lines import LineFiles
from .links import check_links, path_inside
from .lock import lock
from .manifest import STATUSES, read_manifest, sha256, versions, write_manifest
from .plain import plain, plain_number
from .read import METRICS, SAMPLES
from .safe_paths import check_free, check_inside

_HASHED = (RECIPE, METRICS, SAMPLES, ADAPTERS, CODE)
_ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


_written: WeakSet[RunFolder] = WeakSet()
"""Runs that this process is writing."""


def abandon() -> None:
    """Mark every run that this process is writing as stopped, because the process is about to exit."""
    for folder in list(_written):
        with contextlib.suppress(Exception):
            folder.update_manifest(status="stopped", finished=folder.clock.now())


class RunFolder:
    """The folder of one run, which one process writes.

    Attributes:
        path: the folder.
        name: of the run.
        clock: gives the times that are written down.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.name = path.name
        self.clock = RunClock()
        self._manifest: dict[str, Any] = read_manifest(path) if manifest is None else dict(manifest)
        self._pending: Callable[[], None] | None = None
        self._lock: BaseFileLock | None = None
        self._lines: dict[str, int] = {}
        self._line_files = LineFiles(path)

    @classmethod
    def create(cls, output_dir: str | Path, name: str, *, overwrite: bool = False) -> RunFolder:
        """Create the folder `<output_dir>/<name>` with a manifest of status `running`; see `plan` for the arguments.

        Raises:
            RunFolderError: a run is there, or files that are not a run's, or the folder would be elsewhere.
        """
        folder = cls.plan(output_dir, name, overwrite=overwrite)
        folder.make()
        return folder

    @classmethod
    def plan(
        cls,
        output_dir: str | Path,
        name: str,
        *,
        overwrite: bool = False,
        on_made: Callable[[RunFolder], None] | None = None,
    ) -> RunFolder:
        """Check that a folder can be made; it is made as soon as something is written into it.

        Args:
            output_dir: where run folders go; made if it is missing.
            name: of the run.
            overwrite: replace a run of that name. Only what a run makes is deleted, other files stay.
            on_made: called once the folder is there, before anything else is written.

        Raises:
            RunFolderError: a run is there, or files that are not a run's, or the folder would be elsewhere.
        """
        parent = Path(output_dir)
        path = parent / name
        check_inside(parent, path, name)
        try:
            check_free(path, overwrite)
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be made: {error}") from None
        folder = cls(path, {})

        def make() -> None:
            folder._lock, folder._manifest = make_folder(path, overwrite, folder.clock.now())
            folder._pending = None
            _written.add(folder)
            if on_made is not None:
                on_made(folder)

        folder._pending = make
        return folder

    @classmethod
    def resume(
        cls,
        output_dir: str | Path,
        name: str,
        *,
        lines: Mapping[str, int] | None = None,
        manifest: Mapping[str, Any] | None = None,
        on_made: Callable[[RunFolder], None] | None = None,
    ) -> RunFolder:
        """The folder of an earlier run, to resume it; it stays as it is until something is written into it.

        Args:
            output_dir: where run folders go.
            name: of the run.
            lines: how many bytes of each file of lines are kept; the rest is cut off. None: all are kept.
            manifest: of the run; None: it is read.
            on_made: called before anything is written.

        Raises:
            RunFolderError: there is no such run, or another process writes it.
        """
        parent = Path(output_dir)
        path = parent / name
        check_inside(parent, path, name)
        manifest = read_manifest(path) if manifest is None else manifest
        check_links(path, RUN_FILES)
        folder = cls(path, manifest)
        folder._lock = lock(path)
        folder.clock = RunClock(after=last_time(manifest, path / METRICS))
        folder._lines = folder._line_files.sizes() if lines is None else dict(lines)

        def make() -> None:
            folder._pending = None
            _written.add(folder)
            folder.cut(folder._lines)
            resumed = [*manifest.get("resumed", []), folder.clock.now()]
            folder.update_manifest(status="running", resumed=resumed, versions=versions())
            if on_made is not None:
                on_made(folder)

        folder._pending = make
        return folder

    def release(self) -> None:
        """Release the lock, so that other processes can write the folder."""
        _written.discard(self)
        if self._lock is not None:
            self._lock.release(force=True)
            self._lock = None

    @property
    def log(self) -> Path:
        """The file for log messages of this package and of other libraries."""
        return self.path / LOG

    @property
    def is_made(self) -> bool:
        """Whether the folder exists and this process has begun to write it."""
        return self._pending is None

    def make(self) -> None:
        """Make a planned folder now; nothing happens where it is made already.

        Raises:
            RunFolderError: it cannot be made any more.
        """
        if self._pending is not None:
            self._pending()

    # --- writing ---

    def write_recipe(self, text: str) -> None:
        """Write recipe.yaml, without credentials."""
        self.make()
        clean = without_credentials(text)
        write_text(self.path / RECIPE, clean)
        self._record_hashes(self.path / RECIPE)

    def append_metrics(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; a metric that is not finite becomes null.

        Raises:
            ValueError: a metric is called `stage`, `step` or `time`.
        """
        self.make()  # a resumed run writes its manifest before the line
        head = {"stage": stage, "step": step, "time": self.clock.now()}
        reserved = sorted(head.keys() & metrics.keys())
        if reserved:
            raise ValueError(f"metrics cannot be called {', '.join(reserved)}")
        self._append(METRICS, [{**head, **{name: plain_number(value) for name, value in metrics.items()}}])

    def append_samples(self, samples: Iterable[Mapping[str, Any]]) -> None:
        """Append lines to samples.jsonl."""
        self._append(SAMPLES, samples)

    def _append(self, file: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.make()
        self._line_files.append(file, rows)

    def lines(self) -> dict[str, int]:
        """The size in bytes of metrics.jsonl and samples.jsonl; of a folder that is not made yet, as they will be."""
        return self._line_files.sizes() if self.is_made else dict(self._lines)

    def line_hashes(self) -> dict[str, str]:
        """The sha256 of metrics.jsonl and samples.jsonl as they are now; empty for a folder that is not made yet."""
        return self._line_files.hashes() if self.is_made else {}

    def sync(self) -> None:
        """Write the lines through to the disk."""
        if self.is_made:
            self._line_files.sync()

    def cut(self, lines: Mapping[str, int]) -> None:
        """Cut each file of lines down to its size in bytes; a folder that is not made yet is left alone."""
        if self.is_made:
            self._line_files.cut(lines)

    def adapter_dir(self, role: str) -> Path:
        """The folder of a role's adapter, made if it is missing."""
        if not _ROLE.fullmatch(role):
            raise ValueError(f"{role!r} cannot name a role")
        self.make()
        folder = path_inside(self.path, Path(ADAPTERS, role))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def wrote_adapter(self, role: str) -> None:
        """Write the hashes of a role's adapter, which has just been saved, into the manifest."""
        self._record_hashes(self.path / ADAPTERS / role)

    def _record_hashes(self, artifact: Path) -> None:
        """Write the hashes of a file, or of all files in a folder, into the manifest."""
        files = [artifact] if artifact.is_file() else sorted(p for p in artifact.rglob("*") if p.is_file())
        inside = artifact.relative_to(self.path).as_posix()
        known = self._manifest.get("artifacts", {})
        others = {name: digest for name, digest in known.items() if not f"{name}/".startswith(f"{inside}/")}
        hashes = {path.relative_to(self.path).as_posix(): sha256(path) for path in files}
        self.update_manifest(artifacts={**others, **hashes})

    def adapters(self) -> dict[str, str]:
        """Path inside the folder to sha256, of every file of an adapter as it was written."""
        known = self._manifest.get("artifacts", {})
        return {name: digest for name, digest in known.items() if name.startswith(f"{ADAPTERS}/")}

    def copy_code(self, path: str | Path) -> Path:
        """Copy a file of `--plugin` or `--reward` into the run, and write its hash into the manifest."""
        self.make()
        source = Path(path)
        folder = path_inside(self.path, CODE)
        folder.mkdir(exist_ok=True)
        target = folder / source.name
        digest = sha256(source)
        if target.exists() and sha256(target) != digest:
            target = folder / f"{source.stem[:200]}-{digest[:8]}{source.suffix}"
        copy_file(source, target)
        code = {**self._manifest.get("code", {}), target.name: digest}
        artifacts = {**self._manifest.get("artifacts", {}), f"{CODE}/{target.name}": digest}
        self.update_manifest(code=code, artifacts=artifacts)
        return target

    # --- the manifest ---

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as last written."""
        return dict(self._manifest)

    def update_manifest(self, **entries: Any) -> None:
        """Set entries of the manifest and write the whole file."""
        self.make()
        manifest = {**self._manifest, **plain(entries)}
        write_manifest(path_inside(self.path), manifest)
        self._manifest = manifest

    def stage_done(self, stage: str) -> None:
        """Add a stage to the finished ones in the manifest."""
        done = [*self._manifest.get("stages_done", [])]
        if stage not in done:
            self.update_manifest(stages_done=[*done, stage])

    def finish(self, status: str, **entries: Any) -> None:
        """Close the run: its status, the hash of every artifact, and further entries.

        Args:
            status: `done`, `failed` or `stopped`.
            entries: for the manifest.
        """
        if status not in STATUSES[1:]:
            raise ValueError(f"unknown status {status!r}; known: {', '.join(STATUSES[1:])}")
        self.update_manifest(status=status, finished=self.clock.now(), artifacts=self.hashes(), **entries)
        self.release()

    def hashes(self) -> dict[str, str]:
        """Path inside the folder to sha256 of every artifact.

        Where the manifest already has a hash, from when the file was written, that one is returned.
        """
        files: list[Path] = []
        for name in _HASHED:
            path = self.path / name
            files += [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        known = {**self._manifest.get("artifacts", {}), **self.line_hashes()}
        names = sorted({file.relative_to(self.path).as_posix() for file in files} | known.keys())
        return {name: known.get(name) or sha256(self.path / name) for name in names}
