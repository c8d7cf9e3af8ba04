"""Reads files that must be small: it refuses devices, pipes and files that are too large."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class TooLarge(OSError):
    """A file is larger than allowed, or is no regular file."""


def read_small(path: Path, most: int) -> bytes:
    """The content of a file with at most `most` bytes.

    The bytes that are read are counted, because a file may grow, and files of /proc report a size of 0.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        TooLarge: it has more, or is a device, a pipe or a socket, which may never end.
        OSError: it cannot be read.
    """
    # Opening a pipe that nobody writes to would block for ever, so the type is checked first.
    if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():
        raise TooLarge(f"{path}: a device or a pipe, not a file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise TooLarge(f"{path}: more than {most:,} bytes")
    return content
