"""Files and folders that are there as a whole or not at all, after a crash and on a full disk too.

Everything is written aside, put onto the disk, and renamed into its place as the last step. What stood there before
stays until then.
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

_ASIDE = re.compile(r"\.(?P<name>.*)\.(?P<process>\d+)\.rlhf-peft\.tmp", re.DOTALL)
LONGEST = 200
"""Characters of a name that are kept while a file or folder is written aside."""


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, finds the old one or the new one, never half of it.

    Raises:
        OSError: it cannot be written, and names the file; what stood there before is as it was.
    """
    write_file(path, lambda aside: _put(aside, text))


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file by a function that is given the path to write to, as `write_text` does.

    Args:
        path: of the file.
        write: writes a file at the path that it is given, which is beside the other one.

    Raises:
        OSError: it cannot be written, and names the file; what stood there before is as it was.
    """
    with naming(path), _aside(path) as aside:
        remove_leftovers(path.parent, path.name)
        write(aside)
        sync(aside)
        if path.is_file():
            shutil.copymode(path, aside)
        os.replace(aside, path)
        sync_folder(path.parent)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's content, as `write_text` writes one.

    Raises:
        OSError: it cannot be written, and names the file; what stood there before is as it was.
    """

    def copy(aside: Path) -> None:
        shutil.copyfile(source, aside)

    write_file(path, copy)


def never_a_link(path: str, flags: int) -> int:
    """An `opener` for `open`: a link is refused by the operating system; Windows has no such flag."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def write_output(path: Path, content: str | Callable[[Path], None]) -> None:
    """Write a file that a user has named, as `write_file` does: a link is followed, and a device is written to.

    Args:
        path: of the file.
        content: its text, or a function that writes a file at the path that it is given.

    Raises:
        OSError: it cannot be written, and names the file.
    """
    place = path.resolve()
    write = content if callable(content) else lambda aside: _put(aside, content)
    if place.exists() and not place.is_file():
        with naming(path):
            write(place)
    else:
        write_file(place, write)


@contextmanager
def folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which becomes `path` at the end, or is gone where filling it failed.

    What a process that was killed has left of an earlier try is removed.

    Args:
        path: of the folder, which is empty or not there.
        replace: what stands at `path` goes once the new folder is complete.

    Raises:
        OSError: it cannot be made.
    """
    named, path = path, path.resolve()
    stays = path.is_dir() and _stays(path)
    parent = path if stays else path.parent
    parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        remove_leftovers(path)
    for name in (path.name, f"{path.name}.old"):
        remove_leftovers(parent, name)
    with _aside(parent / path.name) as aside:
        aside.mkdir()
        with naming(named, FULL):
            yield aside
        for file in sorted(aside.rglob("*")):
            if file.is_file():
                sync(file)
        with _aside(parent / f"{path.name}.old") as old:
            if stays:
                if replace:
                    _move_out(path, old, but={aside, old})
            elif path.is_dir():
                os.replace(path, old) if replace else path.rmdir()
            try:
                _move_in(aside, path) if stays else os.replace(aside, path)
            except BaseException:
                _put_back(old, path, but={aside, old})
                raise
            _remove(old)
        sync_folder(parent)


@contextmanager
def files(path: Path) -> Iterator[Path]:
    """A folder to fill, whose files then take the place of those in `path`; files of other names stay there.

    Args:
        path: of the folder that the files go to; made where it is missing.

    Raises:
        OSError: they cannot be written, and names `path`; what stood there before is as it was.
    """
    path.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    with _aside(path / "files") as aside:
        aside.mkdir()
        with naming(path, FULL):
            yield aside
            written = sorted(aside.iterdir())
            for file in written:
                sync(file)
        for file in written:
            os.replace(file, path / file.name)
        aside.rmdir()
        sync_folder(path)


def _move_out(path: Path, target: Path, but: Collection[Path]) -> None:
    """Move what a folder holds into another one."""
    target.mkdir()
    for inner in sorted(path.iterdir()):
        if inner not in but:
            os.replace(inner, target / inner.name)


def _put_back(old: Path, path: Path, but: Collection[Path]) -> None:
    """Let a folder that has made room for another one, which could not take its place, be there again."""
    if not old.is_dir():
        return
    if not path.is_dir():
        os.replace(old, path)
        return
    for inner in [inner for inner in path.iterdir() if inner not in but]:
        _remove(inner)
    for inner in sorted(old.iterdir()):
        os.replace(inner, path / inner.name)


def _stays(path: Path) -> bool:
    """Whether an empty folder cannot give way to another one: it is the current one, or a disk of its own."""
    return path == Path.cwd() or os.path.ismount(path)


MOVED = ".moved.json"
"""In a folder whose files are moved into another one: their names, so that a process that was killed is found out."""


def _move_in(aside: Path, path: Path) -> None:
    """Move all that a folder holds into an empty one, and remove it."""
    names = sorted(inner.name for inner in aside.iterdir())
    _put(aside / MOVED, json.dumps(names))
    sync(aside / MOVED)
    for name in names:
        os.replace(aside / name, path / name)
    (aside / MOVED).unlink()
    aside.rmdir()


def _half_moved(path: Path) -> set[Path]:
    """What processes that were killed have moved into a folder, not knowing whether that is all of it."""
    found: set[Path] = set()
    for aside in path.iterdir():
        with contextlib.suppress(OSError, ValueError, TypeError):
            if is_left_over(aside):
                names = set(json.loads((aside / MOVED).read_text(encoding="utf-8")))
                found |= {inner for inner in path.iterdir() if inner.name in names}
    return found


def is_empty(path: Path) -> bool:
    """Whether a folder holds nothing but what a process that was killed has left of `folder`."""
    if not path.is_dir():
        return True
    moved = _half_moved(path)
    return all(inner in moved or is_left_over(inner) for inner in path.iterdir())


def remove_leftovers(parent: Path, name: str | None = None) -> None:
    """Remove what processes that were killed have written aside in a folder, and did not come to rename.

    Args:
        parent: the folder.
        name: of the file or folder that they wrote; None: all.
    """
    moved = _half_moved(parent) if name is None else set()
    for inner in (*moved, *parent.iterdir()):
        if inner in moved or is_left_over(inner, name):
            _remove(inner)


def _remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink(missing_ok=True)


def _put(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)


_written: set[Path] = set()
"""What this process is writing aside now."""


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Where to write what becomes a file or folder; nothing is there, and nothing stays there after an error.

    In a container each process may have the same number, so a process that was killed may have left this very name.
    """
    aside = path.with_name(f".{path.name[:LONGEST]}.{os.getpid()}.rlhf-peft.tmp")
    _remove(aside)
    _written.add(aside.absolute())
    try:
        yield aside
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(aside)
        raise
    finally:
        _written.discard(aside.absolute())


def is_left_over(path: Path, name: str | None = None) -> bool:
    """Whether a file or folder was written aside by a process that is no more.

    Args:
        path: of it.
        name: of the file or folder that it was to become; None: any.
    """
    import psutil

    found = _ASIDE.fullmatch(path.name)
    if found is None or path.is_symlink() or (name is not None and found["name"] != name[:LONGEST]):
        return False
    process = int(found["process"])
    return path.absolute() not in _written if process == os.getpid() else not psutil.pid_exists(process)


def sync(file: Path) -> None:
    """Put what was written into a file onto the disk."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(path: Path) -> None:
    """Make a rename last; Windows has no such call."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Errors that are of a disk, and not of one of its files."""


@contextmanager
def naming(path: Path, only: Collection[int] | None = None) -> Iterator[None]:
    """Let an error of the operating system name the file that was to be written, also where a library raised its own.

    Python says only "No space left on device" where a write fails, and safetensors raises an error of its own.

    Args:
        path: of the file.
        only: numbers of the errors that are meant; None: all.

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
    """The operating system's number of an error, also of one that Rust has written into its text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)|Os \{ code: (\d+)", str(error))
    return None if found is None else int(found[1] or found[2])
