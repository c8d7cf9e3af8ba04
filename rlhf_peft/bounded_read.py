"""Reads files that are small by their nature, and no other: never a device, a pipe, or gigabytes."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class TooLarge(OSError):
    """A file is larger than what it is read as can be, or is no file at all."""


def read_small(path: Path, most: int) -> bytes:
    """The content of a file that holds no more than so many bytes.

    What is counted is what is read: a file may grow, and those of /proc say that they hold nothing.

    Args:
        path: of the file.
        most: bytes that it may hold.

    Raises:
        TooLarge: it holds more, or is a device, a pipe or a socket, which may never end.
        OSError: it cannot be read.
    """
    # A pipe that nobody writes into would wait here for ever if it were opened first.
    if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():
        raise TooLarge(f"{path}: a device or a pipe, not a file")
    with path.open("rb") as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise TooLarge(f"{path}: more than {most:,} bytes")
    return found
