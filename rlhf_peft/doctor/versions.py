"""Checks of Python and of the versions of installed packages."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from .. import __version__
from ..runs.manifest import PACKAGES
from .finding import Finding

PACKAGE = Path(__file__).parents[1]
"""The folder of the package."""
DISTRIBUTION = "rlhf-peft"
TESTED = "constraints.txt"
BUILT_FOR_TORCH = ("torchvision", "torchaudio", "xformers", "torchcodec")
"""Packages whose compiled code works with only one release of torch, which their metadata names."""


@dataclass(frozen=True, slots=True)
class Combination:
    """Releases of packages that do not work together, although each is within its bounds.

    Attributes:
        versions: distribution to its releases, as a specifier.
        trouble: what happens.
        remedy: what to do about it.
    """

    versions: Mapping[str, str]
    trouble: str
    remedy: str


BAD_COMBINATIONS = (
    Combination(
        {"bitsandbytes": ">=0.49", "kernels": ">=0"},
        "on a CPU with AVX512-BF16 bitsandbytes fetches compiled code from the hub when it is imported.",
        "pip uninstall kernels, or set HF_HUB_OFFLINE=1.",
    ),
)
"""Combinations that are known not to work; a new one is added here."""


def check_python() -> Iterator[Finding]:
    """Report the versions of this package and of Python, and note where there is no virtual environment."""
    yield Finding(
        "rlhf-peft", "ok", f"{__version__} on Python {platform.python_version()}, {platform.platform()}"
    )
    if sys.prefix == sys.base_prefix:
        yield Finding(
            "environment", "note", "no virtual environment.", "python3 -m venv .venv keeps plugins apart."
        )


def check_packages() -> Iterator[Finding]:
    """Compare installed versions with the bounds of this package, and with the versions that were tested."""
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "packages", "note", "rlhf-peft is not installed, it runs from its source.", "pip install -e ."
        )
        return
    newest, newer = tested(), []
    for requirement in (
        requirement
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ):
        installed = _version(requirement.name)
        if installed is None:
            yield Finding(requirement.name, "wrong", "is not installed.", f"pip install '{requirement}'")
            continue
        pin = newest.get(canonicalize_name(requirement.name))
        if not requirement.specifier.contains(Version(installed).base_version, prereleases=True):
            above = pin is not None and Version(installed) > pin
            detail = (
                f"{installed} was never tried: {requirement.specifier} is."
                if above
                else f"{installed}, and {requirement.specifier} is needed."
            )
            yield Finding(
                requirement.name, "note" if above else "wrong", detail, f"pip install '{requirement}'"
            )
        elif (
            pin is not None
            and Version(installed) > pin
            and Version(installed).base_version != pin.base_version
        ):
            newer.append(f"{requirement.name} {installed} ({pin})")
        elif requirement.name in PACKAGES:
            yield Finding(requirement.name, "ok", installed)
    if newer:
        yield Finding(
            "versions",
            "note",
            f"newer than the newest that were tested, which stand in brackets: {', '.join(newer)}.",
            "Should something break, install those.",
        )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def tested() -> dict[str, Version]:
    """The versions of `constraints.txt`, by canonical name: the newest with which all tests passed."""
    inside = PACKAGE / "assets" / TESTED
    file = inside if inside.is_file() else PACKAGE.parent / TESTED
    if not file.is_file():
        return {}
    pins = (line.partition("==") for line in file.read_text(encoding="utf-8").splitlines() if "==" in line)
    return {canonicalize_name(name): Version(version) for name, _, version in pins}


def check_combinations() -> Iterator[Finding]:
    """Find installed packages that do not work together."""
    torch = _version("torch")
    for name in BUILT_FOR_TORCH:
        installed = _version(name)
        pins = [Requirement(text) for text in (importlib.metadata.requires(name) or ())] if installed else []
        for pin in pins:
            if (
                pin.name == "torch"
                and torch
                and not pin.specifier.contains(Version(torch).public, prereleases=True)
            ):
                yield Finding(
                    name,
                    "wrong",
                    f"{installed} is built for torch{pin.specifier}, and torch is {torch}: what imports it, "
                    "transformers too, may fail.",
                    f"pip uninstall {name}, or install the one for this torch.",
                )
    for combination in BAD_COMBINATIONS:
        versions = {name: _version(name) or "" for name in combination.versions}
        bad = (SpecifierSet(combination.versions[name]) for name in versions)
        if all(
            version and specifier.contains(version)
            for version, specifier in zip(versions.values(), bad, strict=True)
        ):
            names = " with ".join(f"{name} {version}" for name, version in versions.items())
            yield Finding("combination", "note", f"{names}: {combination.trouble}", combination.remedy)
