"""A cache of rows on the disk, from which they are mapped into memory for use.

An entry is a folder with the rows (an Arrow stream) and a JSON file about them. Because its name is a digest of
everything that the rows depend on, an entry is never changed. It is written to a temporary folder and renamed, so it
exists completely or not at all. If the cache is switched off or cannot be written, rows stay in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow

from .. import atomic
from ..errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset, Features

log = logging.getLogger("rlhf_peft")

FOLDER_VARIABLE = "RLHF_PEFT_CACHE"
"""Environment variable: the folder of the cache, or `off`."""
LIMIT_VARIABLE = "RLHF_PEFT_CACHE_GB"
"""Environment variable: most GB that the cache may take; the entries used least recently are removed first."""
DEFAULT_GB = 20.0
OFF = ("off", "0", "no", "none", "false")
ROWS, ABOUT = "rows.arrow", "entry.json"
BATCH = 1000
"""Number of rows that are written at once."""

Notes = Mapping[str, Any]
OpenSink = Callable[[], Any]
"""Opens an empty sink for an Arrow stream."""
Write = Callable[[OpenSink], Notes]
"""Writes rows as an Arrow stream, and returns notes on them as a JSON object."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the cache.

    Attributes:
        path: its folder.
        about: description of what it was made from.
        rows: number of rows.
        size: bytes on the disk.
        used: time of its creation or last use, in seconds since 1970.
    """

    path: Path
    about: str
    rows: int
    size: int
    used: float


def root() -> Path | None:
    """The folder of the cache, which may not exist yet; None where it is switched off."""
    setting = os.environ.get(FOLDER_VARIABLE, "").strip()
    if setting.lower() in OFF:
        return None
    if setting:
        return Path(setting).expanduser()
    home = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(home).expanduser() if home else Path.home() / ".cache") / "rlhf_peft"


def limit() -> int:
    """Most bytes that the cache may take.

    Raises:
        UsageError: the environment variable holds no number.
    """
    setting = os.environ.get(LIMIT_VARIABLE, "").strip()
    try:
        return int(float(setting or DEFAULT_GB) * 1e9)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{LIMIT_VARIABLE}={setting}: expected a number of GB, such as {DEFAULT_GB:g}."
        ) from error


def key_of(*parts: Any) -> str | None:
    """Digest of everything that rows depend on; None if the cache is off or one of the parts is None.

    Args:
        parts: JSON values, or functions that return them. The functions are called in this order, and only if the
            cache is on.
    """
    if root() is None:
        return None
    values = []
    for part in parts:
        value = part() if callable(part) else part
        if value is None:
            return None
        values.append(value)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:40]


def load_or_make(
    kind: str,
    key: str | None,
    write: Write,
    about: str = "",
    *,
    unchanged: Callable[[], bool] = lambda: True,
) -> tuple[Dataset, Notes]:
    """Return rows from the cache, or make them now and store them there.

    Args:
        kind: kind of the rows; the beginning of the entry's name.
        key: result of `key_of`; None: nothing is stored.
        write: makes the rows; it may be called a second time if the disk is full.
        about: description of what they are made from.
        unchanged: whether the key is still valid once the rows are made; if not, they are not stored.

    Returns:
        The rows, and the notes that `write` has returned.
    """
    folder = None if key is None else root()
    if folder is not None:
        entry_folder = folder / f"{kind}-{key}"
        entry = _open(entry_folder) or _make(entry_folder, write, about, unchanged)
        if entry is not None:
            return entry
    buffers: list[Any] = []

    @contextmanager
    def open_sink() -> Iterator[Any]:
        sink = pyarrow.BufferOutputStream()
        yield sink
        buffers[:] = [sink.getvalue()]

    notes = write(open_sink)
    return _dataset(buffers[0], key), notes


def _make(
    entry_folder: Path, write: Write, about: str, unchanged: Callable[[], bool]
) -> tuple[Dataset, Notes] | None:
    """Make an entry; None if it cannot be written, which is logged."""
    try:
        if entry_folder.is_dir():
            _remove(entry_folder)  # it could not be opened
        with atomic.folder(entry_folder) as temporary_folder:
            notes = write(lambda: pyarrow.OSFile(str(temporary_folder / ROWS), "wb"))
            if not unchanged():
                raise OSError(f"{about} was written to while it was read")
            rows = pyarrow.ipc.open_stream(_map_file(temporary_folder / ROWS)).read_all().num_rows
            info = {
                "about": about,
                "rows": rows,
                "bytes": (temporary_folder / ROWS).stat().st_size,
                "noted": notes,
            }
            (temporary_folder / ABOUT).write_text(json.dumps(info), encoding="utf-8")
    except OSError as error:
        entry = _open(entry_folder)  # another process may have been faster
        if entry is None:
            _warn(entry_folder.parent, error)
        return entry
    entry = _open(entry_folder)
    _trim(entry_folder)
    return entry


_warned: set[str] = set()


def _warn(folder: Path, error: OSError) -> None:
    """Log once for each folder that nothing can be stored there."""
    if str(folder) not in _warned:
        _warned.add(str(folder))
        why = error.strerror or str(error)
        log.warning(
            "%s: rows cannot be kept there (%s); they are read and encoded at every start", folder, why
        )


def _open(entry_folder: Path) -> tuple[Dataset, Notes] | None:
    """Open a complete entry and mark it as used now; None if there is none."""
    try:
        info = json.loads((entry_folder / ABOUT).read_text(encoding="utf-8"))
        if (entry_folder / ROWS).stat().st_size != info["bytes"]:
            return None
        rows = _dataset(_map_file(entry_folder / ROWS), entry_folder.name)
        notes = info["noted"]
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return None
    with contextlib.suppress(OSError):
        os.utime(entry_folder / ABOUT)
    return rows, notes


def _dataset(buffer: pyarrow.Buffer, key: str | None) -> Dataset:
    """A dataset of the rows of an Arrow stream."""
    import datasets

    return datasets.Dataset(pyarrow.ipc.open_stream(buffer).read_all(), fingerprint=key)


_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def _map_file(file: Path) -> pyarrow.Buffer:
    """Map a file into memory."""
    with file.open("rb") as handle:
        mapping = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    _maps.add(mapping)
    return pyarrow.py_buffer(mapping)


def release() -> None:
    """Free the memory of mapped rows that were read; they are read from the disk again when needed."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapping in list(_maps):
            mapping.madvise(mmap.MADV_DONTNEED)


@contextmanager
def batch_writer(sink: Any, features: Features) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
    """Give a function that appends rows to an Arrow stream.

    Args:
        sink: sink of the stream.
        features: columns of all rows.
    """
    schema = features.arrow_schema
    with pyarrow.ipc.new_stream(sink, schema) as writer:

        def put(rows: Sequence[Mapping[str, Any]]) -> None:
            columns = [[row[name] for row in rows] for name in schema.names]
            arrays = [pyarrow.array(c, kind) for c, kind in zip(columns, schema.types, strict=True)]
            if rows:
                writer.write_batch(pyarrow.record_batch(arrays, schema=schema))

        yield put


# --- entries ---


def entries() -> list[Entry]:
    """All entries of the cache, the least recently used first."""
    folder, result = root(), []
    if folder is None or not folder.is_dir():
        return []
    for entry_folder in folder.iterdir():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            info = json.loads((entry_folder / ABOUT).read_text(encoding="utf-8"))
            size = sum(file.stat().st_size for file in entry_folder.iterdir())
            used = (entry_folder / ABOUT).stat().st_mtime
            result.append(Entry(entry_folder, str(info["about"]), int(info["rows"]), size, used))
    return sorted(result, key=lambda entry: entry.used)


def clear() -> None:
    """Remove all entries, and temporary folders that killed processes have left."""
    folder = root()
    if folder is not None and folder.is_dir():
        atomic.remove_leftovers(folder)
        for entry in entries():
            _remove(entry.path)


def _trim(newest: Path) -> None:
    """Remove the least recently used entries until the cache fits its limit; the newest entry goes last."""
    with contextlib.suppress(OSError):
        atomic.remove_leftovers(newest.parent)
    stored = entries()
    excess = sum(entry.size for entry in stored) - limit()
    for entry in sorted(stored, key=lambda entry: entry.path == newest):
        if excess <= 0:
            return
        _remove(entry.path)
        excess -= entry.size


def _remove(entry_folder: Path) -> None:
    """Remove an entry. Its JSON file goes first, so that no other process opens an entry that is half removed."""
    with contextlib.suppress(OSError):
        (entry_folder / ABOUT).unlink(missing_ok=True)
    shutil.rmtree(entry_folder, ignore_errors=True)
