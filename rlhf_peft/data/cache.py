"""Rows that took long to make, kept on the disk by what they were made of, and mapped into memory when they are used.

An entry is a folder with the rows (an Arrow stream) and a JSON file about them. Its name is a digest of everything
that the rows depend on, so an entry is never changed: what depends on something else has another name. It is written
aside and renamed, so it is there as a whole or not at all. Where the cache is switched off or cannot be written, rows
are in memory instead.
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
"""Environment variable: GB that the cache may take; what was used least recently goes first."""
DEFAULT_GB = 20.0
OFF = ("off", "0", "no", "none", "false")
ROWS, ABOUT = "rows.arrow", "entry.json"
BATCH = 1000
"""Rows that are written at once."""

Noted = Mapping[str, Any]
OpenSink = Callable[[], Any]
"""Opens what an Arrow stream is written to, empty each time."""
Write = Callable[[OpenSink], Noted]
"""Writes rows as an Arrow stream, and returns what else is to be known of them, as JSON holds it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the cache holds under one name.

    Attributes:
        path: its folder.
        about: what it was made of, in words.
        rows: how many.
        size: bytes on the disk.
        used: when it was made or used last, in seconds since 1970.
    """

    path: Path
    about: str
    rows: int
    size: int
    used: float


def root() -> Path | None:
    """The folder of the cache, which may not exist yet; None where it is switched off."""
    given = os.environ.get(PLACE, "").strip()
    if given.lower() in OFF:
        return None
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(home).expanduser() if home else Path.home() / ".cache") / "rlhf_peft"


def limit() -> int:
    """Bytes that the cache may take.

    Raises:
        UsageError: the environment variable holds no number.
    """
    given = os.environ.get(LIMIT, "").strip()
    try:
        return int(float(given or DEFAULT_GB) * 1e9)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{LIMIT}={given}: expected a number of GB, such as {DEFAULT_GB:g}.") from error


def key_of(*parts: Any) -> str | None:
    """A digest of everything that rows depend on; None where one of the parts is None: they are not kept then.

    Args:
        parts: as JSON holds them, or functions that return them, called in this order where the cache is on.
    """
    if root() is None:
        return None
    found = []
    for part in parts:
        value = part() if callable(part) else part
        if value is None:
            return None
        found.append(value)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:40]


def kept(
    kind: str,
    key: str | None,
    write: Write,
    about: str = "",
    *,
    still: Callable[[], bool] = lambda: True,
) -> tuple[Dataset, Noted]:
    """Rows from the cache, or else made now and put there.

    Args:
        kind: names the sort of rows.
        key: from `key_of`; None: nothing is kept.
        write: makes the rows; it may be called a second time where the disk is full.
        about: what they are made of, in words.
        still: whether the key still holds once the rows are made; else they are not kept.

    Returns:
        The rows, and what `write` has returned.
    """
    folder = None if key is None else root()
    if folder is not None:
        place = folder / f"{kind}-{key}"
        entry = _opened(place) or _made(place, write, about, still)
        if entry is not None:
            return entry
    buffers: list[Any] = []

    @contextmanager
    def open_sink() -> Iterator[Any]:
        sink = pyarrow.BufferOutputStream()
        yield sink
        buffers[:] = [sink.getvalue()]

    noted = write(open_sink)
    return _dataset(buffers[0], key), noted


def _made(place: Path, write: Write, about: str, still: Callable[[], bool]) -> tuple[Dataset, Noted] | None:
    """An entry that is made now; None where it cannot be written, which is said."""
    try:
        if place.is_dir():
            _remove(place)  # it could not be opened
        with atomic.folder(place) as aside:
            noted = write(lambda: pyarrow.OSFile(str(aside / ROWS), "wb"))
            if not still():
                raise OSError(f"{about} was written to while it was read")
            rows = pyarrow.ipc.open_stream(_mapped(aside / ROWS)).read_all().num_rows
            info = {"about": about, "rows": rows, "bytes": (aside / ROWS).stat().st_size, "noted": noted}
            (aside / ABOUT).write_text(json.dumps(info), encoding="utf-8")
    except OSError as error:
        entry = _opened(place)  # another process may have been faster
        if entry is None:
            _warn(place.parent, error)
        return entry
    entry = _opened(place)
    _trim(place)
    return entry


_warned: set[str] = set()


def _warn(folder: Path, error: OSError) -> None:
    """Say once for each folder that nothing can be kept there."""
    if str(folder) not in _warned:
        _warned.add(str(folder))
        why = error.strerror or str(error)
        log.warning(
            "%s: rows cannot be kept there (%s); they are read and encoded at every start", folder, why
        )


def _opened(place: Path) -> tuple[Dataset, Noted] | None:
    """An entry that is whole, which is noted as used now; None where there is none."""
    try:
        info = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        if (place / ROWS).stat().st_size != info["bytes"]:
            return None
        rows = _dataset(_mapped(place / ROWS), place.name)
        noted = info["noted"]
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return None
    with contextlib.suppress(OSError):
        os.utime(place / ABOUT)
    return rows, noted


def _dataset(buffer: pyarrow.Buffer, key: str | None) -> Dataset:
    import datasets

    return datasets.Dataset(pyarrow.ipc.open_stream(buffer).read_all(), fingerprint=key)


_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def _mapped(file: Path) -> pyarrow.Buffer:
    with file.open("rb") as handle:
        made = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    _maps.add(made)
    return pyarrow.py_buffer(made)


def release() -> None:
    """Give back the memory of the rows that were read; they are read from the disk again when they are needed."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for made in list(_maps):
            made.madvise(mmap.MADV_DONTNEED)


@contextmanager
def batch_writer(sink: Any, features: Features) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
    """A function that writes so many rows into an Arrow stream.

    Args:
        sink: to write to.
        features: the columns of all rows.
    """
    schema = features.arrow_schema
    with pyarrow.ipc.new_stream(sink, schema) as writer:

        def put(rows: Sequence[Mapping[str, Any]]) -> None:
            columns = [[row[name] for row in rows] for name in schema.names]
            arrays = [pyarrow.array(c, kind) for c, kind in zip(columns, schema.types, strict=True)]
            if rows:
                writer.write_batch(pyarrow.record_batch(arrays, schema=schema))

        yield put


# --- what is there ---


def entries() -> list[Entry]:
    """What the cache holds, the least recently used first."""
    folder, found = root(), []
    if folder is None or not folder.is_dir():
        return []
    for place in folder.iterdir():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            info = json.loads((place / ABOUT).read_text(encoding="utf-8"))
            size = sum(file.stat().st_size for file in place.iterdir())
            used = (place / ABOUT).stat().st_mtime
            found.append(Entry(place, str(info["about"]), int(info["rows"]), size, used))
    return sorted(found, key=lambda entry: entry.used)


def clear() -> None:
    """Remove all entries, and what processes that were killed have left."""
    folder = root()
    if folder is not None and folder.is_dir():
        atomic.remove_leftovers(folder)
        for entry in entries():
            _remove(entry.path)


def _trim(newest: Path) -> None:
    """Remove the least recently used entries until the others fit the limit; then the newest, if it alone does not."""
    with contextlib.suppress(OSError):
        atomic.remove_leftovers(newest.parent)
    there = entries()
    excess = sum(entry.size for entry in there) - limit()
    for entry in sorted(there, key=lambda entry: entry.path == newest):
        if excess <= 0:
            return
        _remove(entry.path)
        excess -= entry.size


def _remove(place: Path) -> None:
    """Remove an entry; without its JSON file it is none any more, so a process that opens it finds it or does not."""
    with contextlib.suppress(OSError):
        (place / ABOUT).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
