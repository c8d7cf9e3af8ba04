"""Files and folders that are there as a whole or not at all, after a crash and on a full disk too.

Everything is written aside, put onto the disk, and renamed into its place as the last step. What stood there before
stays until then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

_ASIDE = re.compile(r"\..*\.(?P<process>\d+)\.rlhf-peft\.tmp")


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
    aside = _aside(path)
    try:
        with naming(path):
            write(aside)
            sync(aside)
            if path.is_file():
                shutil.copymode(path, aside)
            os.replace(aside, path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


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
def folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` at the end, or is gone where filling it failed.

    What a process that was killed has left of an earlier try is removed.

    Args:
        path: of the folder, which is empty or not there.

    Raises:
        OSError: it cannot be made.
    """
    stays = path.is_dir() and _stays(path)
    parent = path if stays else path.parent
    parent.mkdir(parents=True, exist_ok=True)
    for place in {parent, path} if path.is_dir() else {parent}:
        remove_leftovers(place)
    aside = _aside(parent / path.absolute().name)
    aside.mkdir()
    try:
        with naming(path, FULL):
            yield aside
        for file in sorted(aside.rglob("*")):
            if file.is_file():
                sync(file)
        if stays:
            for inner in sorted(aside.iterdir()):
                os.replace(inner, path / inner.name)
            aside.rmdir()
        else:
            if path.is_dir():
                path.rmdir()
            os.replace(aside, path)
        sync_folder(parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


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
    aside = _aside(path / "files")
    aside.mkdir()
    try:
        with naming(path, FULL):
            yield aside
            written = sorted(aside.iterdir())
            for file in written:
                sync(file)
        for file in written:
            os.replace(file, path / file.name)
        sync_folder(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _stays(path: Path) -> bool:
    """Whether an empty folder cannot give way to another one: it is the current one, a disk of its own, or a link."""
    return path.resolve() == Path.cwd() or os.path.ismount(path) or path.is_symlink()


def is_empty(path: Path) -> bool:
    """Whether a folder holds nothing but what a process that was killed has left of `folder`."""
    return not path.is_dir() or all(_left_over(inner) for inner in path.iterdir())


def remove_leftovers(parent: Path) -> None:
    """Remove what processes that were killed have written aside in a folder, and did not come to rename."""
    for inner in parent.iterdir():
        if _left_over(inner):
            shutil.rmtree(inner, ignore_errors=True) if inner.is_dir() else inner.unlink(missing_ok=True)


def _put(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name[:200]}.{os.getpid()}.rlhf-peft.tmp")


def _left_over(path: Path) -> bool:
    import psutil

    found = _ASIDE.fullmatch(path.name)
    return found is not None and not path.is_symlink() and not psutil.pid_exists(int(found["process"]))


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
    found = re.search(r"\(os error (\d+)\)", str(error))
    return None if found is None else int(found[1])
