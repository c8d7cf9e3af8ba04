"""Writes files and folders completely or not at all, also after a crash or on a full disk.

Everything is written under a temporary name, flushed to the disk, and renamed as the last step. An earlier file stays
until then.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY_NAME = re.compile(r"\.(?P<name>.*)\.(?P<process>\d+)\.rlhf-peft\.tmp", re.DOTALL)
LONGEST = 200
"""Most characters of a name that are part of its temporary name."""


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, finds the old file or the new one, never a part of it.

    Raises:
        OSError: it cannot be written; the error names the file, and an earlier file is unchanged.
    """
    write_file(path, lambda temporary: _write(temporary, text))


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file, as `write_text` does, by a function that is given a temporary path.

    Args:
        path: of the file.
        write: writes a file at the temporary path, which is in the same folder.

    Raises:
        OSError: it cannot be written; the error names the file, and an earlier file is unchanged.
    """
    with naming(path), _temporary_path(path) as temporary:
        remove_leftovers(path.parent, path.name)
        write(temporary)
        sync(temporary)
        if path.is_file():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's content, completely or not at all, as `write_text` does.

    Raises:
        OSError: it cannot be written; the error names the file, and an earlier file is unchanged.
    """

    def copy(temporary: Path) -> None:
        shutil.copyfile(source, temporary)

    write_file(path, copy)


def never_a_link(path: str, flags: int) -> int:
    """An `opener` for `open` with which the operating system refuses links; Windows has no such flag."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def write_output(path: Path, content: str | Callable[[Path], None]) -> None:
    """Write a file that a user has named, as `write_file` does; links are followed, and devices are written to.

    Args:
        path: of the file.
        content: its text, or a function that writes a file at the path that it is given.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    place = path.resolve()
    write = content if callable(content) else lambda target: _write(target, content)
    if place.exists() and not place.is_file():
        with naming(path):
            write(place)
    else:
        write_file(place, write)


@contextmanager
def folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill, which is renamed to `path` at the end, or removed after an error.

    Leftovers of a killed process are removed.

    Args:
        path: of the folder, which is empty or does not exist.
        replace: remove a folder at `path` once the new one is complete.

    Raises:
        OSError: the folder cannot be made.
    """
    given, path = path, path.resolve()
    contents_only = path.is_dir() and _must_stay(path)
    parent = path if contents_only else path.parent
    parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        remove_leftovers(path)
    for name in (path.name, f"{path.name}.old"):
        remove_leftovers(parent, name)
    with _temporary_path(parent / path.name) as temporary:
        temporary.mkdir()
        with naming(given, FULL):
            yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                sync(file)
        with _temporary_path(parent / f"{path.name}.old") as old:
            if contents_only:
                if replace:
                    _move_out(path, old, but={temporary, old})
            elif path.is_dir():
                os.replace(path, old) if replace else path.rmdir()
            try:
                _move_in(temporary, path) if contents_only else os.replace(temporary, path)
            except BaseException:
                _put_back(old, path, but={temporary, old})
                raise
            _remove(old)
        sync_folder(parent)


@contextmanager
def files(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill, whose files then replace those in `path`; files of other names stay there.

    Args:
        path: of the folder that the files are moved to; made where it is missing.

    Raises:
        OSError: they cannot be written; the error names `path`, and earlier files are unchanged.
    """
    path.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    with _temporary_path(path / "files") as temporary:
        temporary.mkdir()
        with naming(path, FULL):
            yield temporary
            written = sorted(temporary.iterdir())
            for file in written:
                sync(file)
        for file in written:
            os.replace(file, path / file.name)
        temporary.rmdir()
        sync_folder(path)


def _move_out(path: Path, target: Path, but: Collection[Path]) -> None:
    """Move the content of a folder, apart from the paths in `but`, into another one."""
    target.mkdir()
    for inner in sorted(path.iterdir()):
        if inner not in but:
            os.replace(inner, target / inner.name)


def _put_back(old: Path, path: Path, but: Collection[Path]) -> None:
    """Restore the old folder, or its content, at `path`, after the new one could not be moved there."""
    if not old.is_dir():
        return
    if not path.is_dir():
        os.replace(old, path)
        return
    for inner in [inner for inner in path.iterdir() if inner not in but]:
        _remove(inner)
    for inner in sorted(old.iterdir()):
        os.replace(inner, path / inner.name)


def _must_stay(path: Path) -> bool:
    """Whether a folder cannot be replaced by renaming: it is the current folder, or a mount point."""
    return path == Path.cwd() or os.path.ismount(path)


MOVED = ".moved.json"
"""File with the names of the files that are moved, so that a move which a killed process began can be undone."""


def _move_in(source: Path, path: Path) -> None:
    """Move the content of a folder into an empty one, and remove the first."""
    names = sorted(inner.name for inner in source.iterdir())
    _write(source / MOVED, json.dumps(names))
    sync(source / MOVED)
    for name in names:
        os.replace(source / name, path / name)
    (source / MOVED).unlink()
    source.rmdir()


def _half_moved(path: Path) -> set[Path]:
    """The files that killed processes have moved into a folder with `_move_in`, which may be only a part of all."""
    moved: set[Path] = set()
    for entry in path.iterdir():
        with contextlib.suppress(OSError, ValueError, TypeError):
            if is_left_over(entry):
                names = set(json.loads((entry / MOVED).read_text(encoding="utf-8")))
                moved |= {inner for inner in path.iterdir() if inner.name in names}
    return moved


def is_empty(path: Path) -> bool:
    """Whether a folder is empty or does not exist; what a killed process left of `folder` does not count."""
    if not path.is_dir():
        return True
    moved = _half_moved(path)
    return all(inner in moved or is_left_over(inner) for inner in path.iterdir())


def remove_leftovers(parent: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders of killed processes from a folder.

    Args:
        parent: the folder.
        name: of the file or folder that they were writing; None: any.
    """
    moved = _half_moved(parent) if name is None else set()
    for inner in (*moved, *parent.iterdir()):
        if inner in moved or is_left_over(inner, name):
            _remove(inner)


def _remove(path: Path) -> None:
    """Remove a file, or a folder with all its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)


_written: set[Path] = set()
"""Temporary paths that this process is writing now."""


@contextmanager
def _temporary_path(path: Path) -> Iterator[Path]:
    """Yield the temporary path for a file or folder; nothing exists there, and nothing stays there after an error.

    In a container each process may have the same id, so a killed process may have left a file of the same name.
    """
    temporary = path.with_name(f".{path.name[:LONGEST]}.{os.getpid()}.rlhf-peft.tmp")
    _remove(temporary)
    _written.add(temporary.absolute())
    try:
        yield temporary
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(temporary)
        raise
    finally:
        _written.discard(temporary.absolute())


def is_left_over(path: Path, name: str | None = None) -> bool:
    """Whether a path is a temporary file or folder of a process that has ended.

    Args:
        path: that is checked.
        name: of the file or folder that it was written for; None: any.
    """
    import psutil

    match = _TEMPORARY_NAME.fullmatch(path.name)
    if match is None or path.is_symlink() or (name is not None and match["name"] != name[:LONGEST]):
        return False
    process = int(match["process"])
    return path.absolute() not in _written if process == os.getpid() else not psutil.pid_exists(process)


def sync(file: Path) -> None:
    """Flush a file's content to the disk."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(path: Path) -> None:
    """Flush the renames in a folder to the disk; does nothing on Windows."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Error numbers that concern a whole disk, and not one of its files."""


@contextmanager
def naming(path: Path, only: Collection[int] | None = None) -> Iterator[None]:
    """Let errors of the operating system inside the block name the file that was being written.

    Python says only "No space left on device" where a write fails, and safetensors raises an error of its own.

    Args:
        path: of the file.
        only: numbers of the errors to change; None: all.

    Raises:
        OSError: with its number and `path`.
    """
    try:
        yield
    except Exception as error:
        number = error_number(error)
        if number is None or (only is not None and number not in only):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def error_number(error: Exception) -> int | None:
    """The operating system's number of an error, also where Rust code put it into the text; None: it has none."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)|Os \{ code: (\d+)", str(error))
    return None if match is None else int(match[1] or match[2])
