"""Checks what works on this machine: versions, devices, quantizers, disks, the hub and plugins."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from . import __version__, entry_points, foreign
from .runs.manifest import PACKAGES

if TYPE_CHECKING:
    from .engine import BaseSpec

State = Literal["ok", "note", "wrong"]
PLUGIN_LIMIT = foreign.IMPORT_LIMIT + 120
"""Most seconds for the import of all plugins."""
SMALL_DISK = 10 * 2**30
WORST_ERROR = 0.2
"""Largest relative error of a quantized layer's output; a larger one means that it is broken."""
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


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        what: was checked.
        state: ok, note (works, with a limit) or wrong.
        detail: what was found.
        remedy: what to do about it; empty where nothing has to be done.
    """

    what: str
    state: State
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """The finding for `--json`, in which the detail is called `found`."""
        return {"what": self.what, "state": self.state, "found": self.detail, "remedy": self.remedy}


def checks(*, no_plugins: bool = False) -> Iterator[Finding]:
    """Run all checks one after the other; a check that raises is itself a finding."""
    check_functions = (_python, _packages, _combinations, _device, _memory, _quantization, _disk, _hub)
    for check in check_functions if no_plugins else (*check_functions, _plugins):
        try:
            yield from check()
        except Exception as error:  # a broken installation may raise anything
            yield Finding(check.__name__.strip("_"), "wrong", f"{type(error).__name__}: {error}")


def _python() -> Iterator[Finding]:
    yield Finding(
        "rlhf-peft", "ok", f"{__version__} on Python {platform.python_version()}, {platform.platform()}"
    )
    if sys.prefix == sys.base_prefix:
        yield Finding(
            "environment", "note", "no virtual environment.", "python3 -m venv .venv keeps plugins apart."
        )


def _packages() -> Iterator[Finding]:
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
    inside = Path(__file__).parent / "assets" / TESTED
    file = inside if inside.is_file() else Path(__file__).parents[1] / TESTED
    if not file.is_file():
        return {}
    pins = (line.partition("==") for line in file.read_text(encoding="utf-8").splitlines() if "==" in line)
    return {canonicalize_name(name): Version(version) for name, _, version in pins}


def _combinations() -> Iterator[Finding]:
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


def _device() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        if built:
            yield Finding(
                "GPU",
                "note",
                f"torch is built for CUDA {built}, and sees no GPU.",
                "Look at nvidia-smi: driver?",
            )
        elif shutil.which("nvidia-smi"):
            detail = "there is an NVIDIA driver, and torch is built without CUDA."
            yield Finding(
                "GPU", "wrong", detail, "Install torch for your driver: https://pytorch.org/get-started"
            )
        else:
            yield Finding("GPU", "note", f"none; {os.cpu_count()} CPU cores. Small models train on them.")
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        half = (
            "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16: fp16 or float32"
        )
        detail = f"{card.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GB free, {half}"
        yield Finding(f"GPU {index}", "ok" if free > total / 2 else "note", detail)


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    yield Finding("memory", "ok", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GB free")


def _quantization() -> Iterator[Finding]:
    """Quantize a small model and compute with it, because a package may import and yet not work."""
    import torch

    from .engine import BaseSpec
    from .registry import Registry

    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = BaseSpec("builtin:tiny", compute_dtype="float32", device=device)
    registry = Registry.load(no_plugins=True)
    for name in registry.names("quantizers"):
        quantizer = registry.make("quantizers", name)
        if quantizer.bits is not None:
            yield _quantizer(name, replace(spec, quantizer=quantizer))


def _quantizer(name: str, spec: BaseSpec) -> Finding:
    remedy = "Set model.quantization=none."
    try:
        from .engine.quantize import quantization_error

        error = quantization_error(spec)
    except Exception as problem:  # a broken installation may raise anything
        return Finding(f"quantizer {name}", "wrong", f"{type(problem).__name__}: {problem}", remedy)
    fine = error < WORST_ERROR
    message = f"forward and backward on {spec.device}, error {error:.1%}"
    return Finding(f"quantizer {name}", "ok" if fine else "wrong", message, "" if fine else remedy)


def _disk() -> Iterator[Finding]:
    for what, place in (("disk here", Path.cwd()), ("disk for models", _cache())):
        existing = next(p for p in (place, *place.parents) if p.exists())
        free = shutil.disk_usage(existing).free
        detail = f"{free / 2**30:.0f} GB free at {existing}"
        yield Finding(
            what,
            "ok" if free > SMALL_DISK else "note",
            detail,
            "" if free > SMALL_DISK else "An 8B model is 16 GB.",
        )
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            pass
    except OSError as error:
        yield Finding("writing here", "wrong", str(error), "Change the folder, or set output_dir=...")


def _cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _hub() -> Iterator[Finding]:
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        yield Finding("hub", "note", "HF_HUB_OFFLINE is set: models come from folders and the cache only.")
    else:
        detail = (
            "a token is there" if get_token() else "no token; public models need none (else: hf auth login)"
        )
        yield Finding("hub", "ok", detail)


def _plugins() -> Iterator[Finding]:
    """Import the plugins in another process, because one of them may end the process or never return."""
    rows, _ = _list_plugins({}, None)
    if rows is None:
        yield from _crashing_plugins()
        return
    for row in rows:
        plugin = f"plugin {row['name']} ({row['distribution']} {row['version']})"
        if row["status"] == "broken":
            remedy = f"rlhf-peft plugins uninstall {row['distribution']}"
            yield Finding("plugin", "wrong", f"{plugin} was left out: {row['reason']}", remedy)
        for note in row["notes"]:
            yield Finding("plugin", "note", f"{plugin} {note} as it was imported")
    working = {row["distribution"] for row in rows if row["status"] == "ok"}
    yield Finding("plugins", "ok", f"{len(working)} distributions bring something")


def _crashing_plugins() -> Iterator[Finding]:
    """Find the plugins that end the process that imports them, by importing each alone."""
    points = [point for point in entry_points.points(entry_points.PLUGINS) if not point.disabled]
    for point in points:
        others = {name for other in points if other is not point for name in (other.name, other.distribution)}
        names = ",".join(sorted(others - {point.name, point.distribution}))
        rows, ended = _list_plugins({entry_points.DISABLE: names}, subprocess.DEVNULL)
        if rows is None:
            yield Finding(
                "plugin",
                "wrong",
                f"plugin {point.name} ({point.distribution} {point.version}) {ended} as it was imported.",
                f"rlhf-peft plugins uninstall {point.distribution}, or RLHF_PEFT_DISABLE_PLUGINS={point.distribution}",
            )


def _list_plugins(
    variables: Mapping[str, str], stderr: int | None
) -> tuple[list[dict[str, Any]] | None, str]:
    """Run `plugins list` in another process.

    Args:
        variables: of the environment, beside this process's own.
        stderr: of the process, as for `subprocess.run`.

    Returns:
        The rows and an empty text; or None and how the process ended, where it returned no rows.
    """
    command = [sys.executable, "-m", "rlhf_peft", "plugins", "list", "--json"]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=PLUGIN_LIMIT,
            check=False,
        )
        rows: list[dict[str, Any]] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return None, f"has not come back within {PLUGIN_LIMIT:g} s"
    except ValueError:
        return None, f"ended the process with status {done.returncode}"
    return rows, ""
