#!/usr/bin/env python3
"""Writes the constraints files: `python .ci/constraints.py [newest] [lowest] [image]`; no argument means all.

    constraints.txt         the newest releases that pyproject.toml admits; what the README's commands install
    constraints-lowest.txt  each direct dependency at its lower bound; what these need in turn is the newest
    constraints-image.txt   torch, transformers and accelerate as in a GPU image that many people have; all other direct
                            dependencies at their lower bounds

Each is resolved for Python 3.11 by uv (`pip install uv`), which reads the bounds of pyproject.toml.
After a change of bounds, and to renew what is tested, run it, run the tests with each file, and commit the files.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "3.11"
TORCH = "torch==2.13.0"
"""The torch that is tested every time; newer ones are tested without constraints."""
IMAGE = ("torch==2.11.0", "transformers==5.17.0", "accelerate==1.15.0")
LOWEST = ("--resolution", "lowest-direct")
EXTRAS = ("dev", "math")
"""The extras that the tests need. What builds the documentation is never installed beside the package's tests."""
FILES = {
    "newest": ("constraints.txt", (TORCH,), ()),
    "lowest": ("constraints-lowest.txt", (), LOWEST),
    "image": ("constraints-image.txt", IMAGE, LOWEST),
}
CUDA = re.compile(r"(nvidia-|cuda-|triton)")
"""Torch's own companions: each build of it names those that it needs."""


def requirements() -> dict[str, str]:
    """Canonical name of each direct dependency, those for development too, to its specifier."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in EXTRAS for line in project["optional-dependencies"][extra]),
    ]
    parts = (re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?(.*)", line) for line in lines)
    return {canonical(part[1]): part[2] for part in parts if part}


def canonical(name: str) -> str:
    """A distribution's name as the index knows it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lower_bound(specifier: str) -> str:
    """The version behind `>=`."""
    found = re.search(r">=([0-9.]+)", specifier)
    if found is None:
        raise SystemExit(f"pyproject.toml: no lower bound in {specifier!r}")
    return found[1]


def same(one: str, other: str) -> bool:
    """Whether two versions are equal but for zeros at their end."""
    strip = re.compile(r"(\.0)+$")
    return strip.sub("", one) == strip.sub("", other)


def resolve(pins: tuple[str, ...], options: tuple[str, ...]) -> list[str]:
    """The pins of one resolution."""
    command = [
        "uv",
        "pip",
        "compile",
        "pyproject.toml",
        *(f"--extra={extra}" for extra in EXTRAS),
        "--python-version",
        PYTHON,
        "--quiet",
    ]
    command += ["--no-header", "--no-annotate", "--strip-extras", "--constraint", "-", *options]
    done = subprocess.run(command, cwd=ROOT, input="\n".join(pins), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [line for line in done.stdout.splitlines() if line and not CUDA.match(line)]


def check_lowest(lines: list[str]) -> None:
    """Every direct dependency must be at its very bound: a bound that cannot be installed is none."""
    pinned = dict(line.split("==") for line in lines)
    wrong = [
        f"{name}: the bound is {lower_bound(specifier)}, the lowest that resolves {pinned[name]}"
        for name, specifier in requirements().items()
        if not same(pinned[name], lower_bound(specifier))
    ]
    if wrong:
        raise SystemExit("pyproject.toml: bounds that nothing resolves to:\n  " + "\n  ".join(wrong))


def write(kind: str) -> None:
    """Resolve and write one file."""
    name, pins, options = FILES[kind]
    lines = resolve(pins, options)
    if kind == "lowest":
        check_lowest(lines)
    head = f"# {kind}: written by .ci/constraints.py for Python {PYTHON}; do not edit.\n"
    (ROOT / name).write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {len(lines)} pins", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[*FILES, []], help="which files; default: all")
    for kind in parser.parse_args().kinds or FILES:
        write(kind)
