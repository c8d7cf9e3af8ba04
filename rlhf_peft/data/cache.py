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

PLACE = "RLHF_PEFT_CACHE"
"""Environment variable: the folder of the cache, or `off`."""
LIMIT = "RLHF_PEFT_CACHE_GB"
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
    setting = os.environ.get(PLACE, "").strip()
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
    setting = os.environ.get(LIMIT, "").strip()
    try:
        return int(float(setting or DEFAULT_GB) * 1e9)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{LIMIT}={setting}: expected a number of GB, such as {DEFAULT_GB:g}.") from error


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
    place: Path, write: Write, about: str, unchanged: Callable[[], bool]
) -> tuple[Dataset, Notes] | None:
    """Make an entry; None if it cannot be written, which is logged."""
    try:
        if place.is_dir():
            _remove(place)  # it could not be opened
        with atomic.folder(place) as aside:
            notes = write(lambda: pyarrow.OSFile(str(aside / ROWS), "wb"))
            if not unchanged():
                raise OSError(f"{about} was written to while it was read")
            rows = pyarrow.ipc.open_stream(_map_file(aside / ROWS)).read_all().num_rows
            info = {"about": about, "rows": rows, "bytes": (aside / ROWS).stat().st_size, "noted": notes}
            (aside / ABOUT).write_text(json.dumps(info), encoding="utf-8")
    except OSError as error:
        entry = _open(place)  # another process may have been faster
        if entry is None:
            _warn(place.parent, error)
        return entry
    entry = _open(place)
    _trim(place)
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


def _open(place: Path) -> tuple[Dataset, Notes] | None:
    """Open a complete entry and mark it as used now; None if there is none."""
    try:
        info = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        if (place / ROWS).stat().st_size != info["bytes"]:
            return None
        rows = _dataset(_map_file(place / ROWS), place.name)
        notes = info["noted"]
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return None
    with contextlib.suppress(OSError):
        os.utime(place / ABOUT)
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
    for place in folder.iterdir():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            info = json.loads((place / ABOUT).read_text(encoding="utf-8"))
            size = sum(file.stat().st_size for file in place.iterdir())
            used = (place / ABOUT).stat().st_mtime
            result.append(Entry(place, str(info["about"]), int(info["rows"]), size, used))
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


def _remove(place: Path) -> None:
    """Remove an entry. Its JSON file goes first, so that no other process opens an entry that is half removed."""
    with contextlib.suppress(OSError):
        (place / ABOUT).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
