"""A run's folder while it is written: made once, never over somebody's files, every line whole.

A planned folder is made with the first thing that is written into it, and only then an earlier run gives way: a run
that ends before it has trained anything leaves the disk as it was.

    <output_dir>/<name>/
      recipe.yaml  manifest.json  metrics.jsonl  samples.jsonl  report.html
      adapters/<role>/  code/  checkpoints/  tracking/  run.log

Left out on purpose: what adapters and heads look like (the engine writes them), and reading (`read`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import yaml
from filelock import BaseFileLock

from ..atomic import copy_file, naming, never_a_link, remove_leftovers, write_text
from ..errors import RunFolderError
from ..redact import scrub
from .clock import RunClock, last_time
from .links import check_links, own
from .lock import lock
from .manifest import FILE, FORMAT, STATUSES, VERSION, read_manifest, sha256, versions, write_manifest
from .read import METRICS, SAMPLES
from .safe_paths import check_free, check_inside, remove

RECIPE = "recipe.yaml"
LOG = "run.log"
ADAPTERS = "adapters"
CODE = "code"
OURS = (RECIPE, METRICS, SAMPLES, "report.html", LOG, ADAPTERS, CODE, "checkpoints", "tracking", FILE)
"""What a run makes, the manifest last: until it is gone the folder is known as a run's."""

_HASHED = (RECIPE, METRICS, SAMPLES, ADAPTERS, CODE)
_ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


_written: WeakSet[RunFolder] = WeakSet()
"""Runs that this process is writing."""


def abandon() -> None:
    """Note in every run that this process is writing that it has stopped: the process is about to end at once."""
    for folder in list(_written):
        with contextlib.suppress(Exception):
            folder.update_manifest(status="stopped", finished=folder.clock.now())


@dataclass(frozen=True)
class RunInfo:
    """A run as observers see it: its name, its folder, its recipe as written."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]


class RunFolder:
    """One run's folder.

    Attributes:
        path: the folder.
        name: of the run.
        clock: of the times that it writes down.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.name = path.name
        self.clock = RunClock()
        self._manifest: dict[str, Any] = read_manifest(path) if manifest is None else dict(manifest)
        self._recipe: Mapping[str, Any] = {}
        self._pending: Callable[[], None] | None = None
        self._lock: BaseFileLock | None = None
        self._lines: dict[str, int] = {}
        self._hashes: dict[str, Any] = {}

    @classmethod
    def create(cls, output_dir: str | Path, name: str, *, overwrite: bool = False) -> RunFolder:
        """A new folder `<output_dir>/<name>`, its manifest saying `running`; arguments as `plan` has them.

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
        made: Callable[[RunFolder], None] | None = None,
    ) -> RunFolder:
        """A folder that can be made, and is, as soon as something is written into it.

        Args:
            output_dir: where run folders go; made if it is missing.
            name: of the run.
            overwrite: replace a run of that name. Only what a run makes is deleted, other files stay.
            made: called once the folder is there, before anything else is written.

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
            folder._lock, folder._manifest = _make(path, overwrite, folder.clock.now())
            folder._pending = None
            _written.add(folder)
            if made is not None:
                made(folder)

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
        made: Callable[[RunFolder], None] | None = None,
    ) -> RunFolder:
        """The folder of a run that is there, to go on with it; it stays as it is until something is written into it.

        Args:
            output_dir: where run folders go.
            name: of the run.
            lines: bytes of each file of lines that stay; those after them are taken off. None: all stay.
            manifest: of the run; None: it is read.
            made: called before anything is written.

        Raises:
            RunFolderError: there is no such run, or another process writes it.
        """
        parent = Path(output_dir)
        path = parent / name
        check_inside(parent, path, name)
        manifest = read_manifest(path) if manifest is None else manifest
        check_links(path, OURS)
        folder = cls(path, manifest)
        folder._lock = lock(path)
        folder.clock = RunClock(after=last_time(manifest, path / METRICS))
        folder._lines = folder._sizes() if lines is None else dict(lines)

        def make() -> None:
            folder._pending = None
            _written.add(folder)
            folder.cut(folder._lines)
            again = [*manifest.get("resumed", []), folder.clock.now()]
            folder.update_manifest(status="running", resumed=again, versions=versions())
            if made is not None:
                made(folder)

        folder._pending = make
        return folder

    def release(self) -> None:
        """Let other processes write the folder."""
        _written.discard(self)
        if self._lock is not None:
            self._lock.release(force=True)
            self._lock = None

    @property
    def log(self) -> Path:
        """The file for what was said while the run went on: by this package, and by other libraries."""
        return self.path / LOG

    @property
    def made(self) -> bool:
        """Whether the folder is there."""
        return self._pending is None

    def make(self) -> None:
        """Make a planned folder now.

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
        self._wrote(self.path / RECIPE)
        self._recipe = yaml.safe_load(clean)

    @property
    def view(self) -> RunInfo:
        """What observers are told."""
        return RunInfo(self.name, self.path, self._recipe)

    def append_metrics(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl; a figure that is not finite becomes null.

        Raises:
            ValueError: a figure is called `stage`, `step` or `time`.
        """
        self.make()  # what it notes of a resumption comes before the line
        head = {"stage": stage, "step": step, "time": self.clock.now()}
        taken = sorted(head.keys() & figures.keys())
        if taken:
            raise ValueError(f"figures cannot be called {', '.join(taken)}")
        self._append(METRICS, [{**head, **{name: _figure(value) for name, value in figures.items()}}])

    def append_samples(self, samples: Iterable[Mapping[str, Any]]) -> None:
        """Lines of samples.jsonl."""
        self._append(SAMPLES, samples)

    def _append(self, file: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.make()
        lines = [json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        text = "".join(lines).encode("utf-8", "backslashreplace")
        path, found = own(self.path, file), self._hash(file)
        with naming(path), open(path, "ab", opener=never_a_link) as out:
            out.write(text)
        found.update(text)

    def lines(self) -> dict[str, int]:
        """Bytes of each file of lines; of a folder that is not made yet, those that it will have."""
        return self._sizes() if self.made else dict(self._lines)

    def _sizes(self) -> dict[str, int]:
        paths = {name: self.path / name for name in (METRICS, SAMPLES)}
        return {name: path.stat().st_size for name, path in paths.items() if path.is_file()}

    def line_hashes(self) -> dict[str, str]:
        """sha256 of each file of lines as far as it is written; of a folder that is not made yet, none."""
        return {name: self._hash(name).hexdigest() for name in self._sizes()} if self.made else {}

    def _hash(self, name: str) -> Any:
        """The hash of a file of lines, which goes on with each line: what lies there is read once."""
        if name not in self._hashes:
            path = self.path / name
            self._hashes[name] = hashlib.sha256(path.read_bytes() if path.is_file() else b"")
        return self._hashes[name]

    def sync(self) -> None:
        """Put the lines that were written onto the disk."""
        for name in self.lines():
            with (self.path / name).open("rb") as file:
                os.fsync(file.fileno())

    def cut(self, lines: Mapping[str, int]) -> None:
        """Take off the lines that came after; nothing of a folder that is not made yet."""
        if not self.made:
            return
        for name in (METRICS, SAMPLES):
            path, size = own(self.path, name), lines.get(name, 0)
            if path.is_file() and path.stat().st_size > size:
                os.truncate(path, size)
            self._hashes.pop(name, None)

    def adapter_dir(self, role: str) -> Path:
        """The folder of a role's adapter, made if it is missing."""
        if not _ROLE.fullmatch(role):
            raise ValueError(f"{role!r} cannot name a role")
        self.make()
        folder = own(self.path, Path(ADAPTERS, role))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def wrote_adapter(self, role: str) -> None:
        """Note the hashes of a role's adapter, which has just been written, in the manifest."""
        self._wrote(self.path / ADAPTERS / role)

    def _wrote(self, place: Path) -> None:
        """Note the hashes of a file, or of all files in a folder, in the manifest."""
        files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
        inside = place.relative_to(self.path).as_posix()
        known = self._manifest.get("artifacts", {})
        others = {name: found for name, found in known.items() if not f"{name}/".startswith(f"{inside}/")}
        hashes = {path.relative_to(self.path).as_posix(): sha256(path) for path in files}
        self.update_manifest(artifacts={**others, **hashes})

    def adapters(self) -> dict[str, str]:
        """Path inside the folder to sha256, of every file of an adapter as it was written."""
        known = self._manifest.get("artifacts", {})
        return {name: found for name, found in known.items() if name.startswith(f"{ADAPTERS}/")}

    def copy_code(self, path: str | Path) -> Path:
        """Copy a file of `--plugin` or `--reward` into the run and note its hash in the manifest."""
        self.make()
        source = Path(path)
        folder = own(self.path, CODE)
        folder.mkdir(exist_ok=True)
        target = folder / source.name
        digest = sha256(source)
        if target.exists() and sha256(target) != digest:
            target = folder / f"{source.stem[:200]}-{digest[:8]}{source.suffix}"
        copy_file(source, target)
        code = {**self._manifest.get("code", {}), target.name: digest}
        noted = {**self._manifest.get("artifacts", {}), f"{CODE}/{target.name}": digest}
        self.update_manifest(code=code, artifacts=noted)
        return target

    # --- the manifest ---

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as last written."""
        return dict(self._manifest)

    def update_manifest(self, **entries: Any) -> None:
        """Set entries of the manifest and write it whole."""
        self.make()
        manifest = {**self._manifest, **plain(entries)}
        write_manifest(own(self.path), manifest)
        self._manifest = manifest

    def stage_done(self, stage: str) -> None:
        """Note that a stage is done."""
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
        """Path inside the folder to sha256 of every artifact: as it was when it was written, where that was noted."""
        files: list[Path] = []
        for name in _HASHED:
            path = self.path / name
            files += [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        noted = {**self._manifest.get("artifacts", {}), **self.line_hashes()}
        names = sorted({file.relative_to(self.path).as_posix() for file in files} | noted.keys())
        return {name: noted.get(name) or sha256(self.path / name) for name in names}


def without_credentials(recipe: str) -> str:
    """A recipe's text as it is written into the run folder: the same where it holds none."""
    data = yaml.safe_load(recipe)
    clean = scrub(data)
    return (
        recipe if clean == data else yaml.safe_dump(clean, sort_keys=False, allow_unicode=True, width=2**20)
    )


def _make(path: Path, overwrite: bool, now: float) -> tuple[BaseFileLock, dict[str, Any]]:
    """Make the folder, an earlier run gone, with a manifest that says `running`; it is locked."""
    begun = {
        "format": FORMAT,
        "version": VERSION,
        "name": path.name,
        "status": "running",
        "started": now,
    }
    manifest = {**begun, "stages_done": [], "versions": versions()}
    try:
        check_free(path, overwrite)
        path.mkdir(parents=True, exist_ok=True)
        held = lock(path)
        check_free(path, overwrite)
        remove_leftovers(path)
        # First of all, so that the folder is a run's, and not a whole one, while the earlier one goes.
        write_manifest(path, manifest)
        for name in OURS[:-1]:
            remove(path / name)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be made: {error}") from None
    return held, manifest


def _figure(value: Any) -> float | int | None:
    """A number as JSON has it; anything with `item()` (tensors, NumPy) counts."""
    number = value.item() if hasattr(value, "item") else value
    if number is None:
        return None
    if not isinstance(number, (int, float)):
        raise TypeError(f"a figure must be a number, found {type(value).__name__}")
    if isinstance(number, bool):
        return int(number)
    return number if math.isfinite(number) else None


def plain(value: Any) -> Any:
    """Any value as JSON has it: tensors become numbers and lists, paths text, not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)
