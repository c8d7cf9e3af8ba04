"""Writes the package of a new plugin, whose tests pass before anything in it is changed."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path

from packaging.utils import canonicalize_name

from .. import __version__
from ..errors import UsageError

KINDS = ("reward", "sampler", "algorithm", "environment", "quantizer", "observer")

_PREFIX = "rlhf-peft-"
_NAME = re.compile(r"[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]")


def module_name(name: str) -> str:
    """The name of a distribution's module: its canonical name with underscores.

    Raises:
        UsageError: it is no name of a distribution (PEP 503), or no module can have it.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name of a package: letters, digits, '.', '_' and '-', such as rlhf-peft-brevity."
        )
    module = canonicalize_name(name).replace("-", "_")
    is_reserved = module in sys.stdlib_module_names or module in (
        "rlhf_peft",
        "torch",
        "transformers",
        "tests",
    )
    if is_reserved or keyword.iskeyword(module) or not module.isidentifier():
        raise UsageError(
            f"{name!r}: no module can be called {module}. Try {_PREFIX}{canonicalize_name(name)}."
        )
    return module


def registered_name(name: str) -> str:
    """The name that a recipe uses: the distribution's name without `rlhf-peft-`."""
    return canonicalize_name(name).removeprefix(_PREFIX)


def write(name: str, kind: str, dest: Path) -> list[Path]:
    """Write a package into a folder that is absent or empty.

    Args:
        name: of the distribution.
        kind: one of `KINDS`.
        dest: the package's folder.

    Returns:
        The files that were written.

    Raises:
        UsageError: the name or kind cannot be used, or the folder is not empty.
    """
    module = module_name(name)
    if kind not in KINDS:
        raise UsageError(f"--kind {kind}: expected {', '.join(KINDS)}.")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(
            f"{dest}: there already, and nothing is overwritten. Name another folder with --dest."
        )
    short = registered_name(name)
    words = {
        "__DISTRIBUTION__": canonicalize_name(name),
        "__MODULE__": module,
        "__NAME__": short,
        "__CLASS__": "".join(part.capitalize() for part in short.replace(".", "-").split("-")),
        "__KIND__": kind,
        "__CORE__": __version__,
        "__MINOR__": ".".join(__version__.split(".")[:2]),
    }
    if not words["__CLASS__"].isidentifier():
        words["__CLASS__"] = f"Plugin{words['__CLASS__']}"
    plan = {
        "pyproject.toml": "pyproject.toml",
        "README.md": f"{kind}.md",
        f"{module}.py": f"{kind}.py",
        f"tests/test_{module}.py": f"test_{kind}.py",
        ".github/workflows/test.yml": "test.yml",
        ".gitignore": "gitignore",
    }
    return [_fill(dest / file, template, words) for file, template in plan.items()]


def _fill(path: Path, template: str, words: dict[str, str]) -> Path:
    text = (files(__package__) / "templates" / f"{template}.txt").read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(word, value)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error}") from None
    return path
