"""`python tests/gpu/trim.py WHEEL`: leaves of bitsandbytes' wheel the libraries for CUDA 13.0 and for CPUs.

The wheel has a compiled library for each version of CUDA, for ROCm and for XPU: 43 MB, of which 3.6 MB are left.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

KEPT = ("libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so")
COMPILED = (".so", ".dll", ".dylib")


def is_dropped(name: str) -> bool:
    """Whether a file of the wheel is a library that is not kept."""
    return name.endswith(COMPILED) and not name.endswith(KEPT)


def trim(wheel: Path) -> None:
    """Write the wheel again without the other libraries; RECORD, the list of its files, loses their lines."""
    trimmed = wheel.with_suffix(".new")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(trimmed, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        if missing := [kept for kept in KEPT if not any(name.endswith(kept) for name in names)]:
            raise SystemExit(
                f"{wheel.name} has no {missing[0]}: it is not the release that this script knows."
            )
        for file in old.infolist():
            if is_dropped(file.filename):
                continue
            content = old.read(file)
            if file.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if not is_dropped(line.split(",")[0])).encode()
            new.writestr(file, content)
    trimmed.replace(wheel)


if __name__ == "__main__":
    for path in sys.argv[1:]:
        trim(Path(path))
