"""Builds and loads the shim that lets fake CUDA tensors have gradients on a machine without a card."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.cpp")
COMPILER_VARIABLE = "CXX"
"""Environment variable: the C++ compiler; default: c++, g++ or clang++, the first that is found."""
_loaded: list[ctypes.CDLL] = []


class DryRunUnavailable(RuntimeError):
    """A dry run is not possible on this machine; the message says why."""


def compiler() -> str:
    """The C++ compiler.

    Raises:
        DryRunUnavailable: there is none.
    """
    wanted = os.environ.get(COMPILER_VARIABLE)
    for name in (wanted,) if wanted else ("c++", "g++", "clang++"):
        path = shutil.which(name)
        if path is not None:
            return path
    raise DryRunUnavailable(
        "a dry run needs a C++ compiler (c++, g++ or clang++), and none was found. Install one, such as the package "
        "g++ or build-essential, or name it in the environment variable CXX."
    )


def library() -> Path:
    """The compiled shim for the installed torch; it is built when it is asked for the first time (about 5 s).

    Raises:
        DryRunUnavailable: there is no compiler, or it cannot compile the shim for this torch.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise DryRunUnavailable("a dry run needs torch, which is not installed here.")
    torch_folder = Path(spec.origin).parent
    digest = hashlib.sha256(SOURCE.read_bytes())
    for part in (importlib.metadata.version("torch"), str(torch_folder), sys.version):
        digest.update(part.encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlhf_peft" / "dryrun"
    target = cache / f"shim-{digest.hexdigest()[:16]}.so"
    if target.is_file():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=cache)
    except OSError:  # A home folder that cannot be written: the shim lives as long as this process.
        folder = tempfile.mkdtemp()
        target = Path(folder) / target.name
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    built = Path(folder) / "shim.so"
    try:
        _compile(built, torch_folder)
        built.replace(target)
    finally:
        if target.parent != Path(folder):
            shutil.rmtree(folder, ignore_errors=True)
    return target


def _compile(target: Path, torch_folder: Path) -> None:
    libraries = torch_folder / "lib"
    command = [
        compiler(), "-O1", "-std=c++20", "-shared", "-fPIC", "-I", str(torch_folder / "include"), str(SOURCE),
        "-o", str(target), "-L", str(libraries), "-ltorch_cpu", "-lc10",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = next((line for line in result.stderr.splitlines() if "error" in line), "").strip()
        raise DryRunUnavailable(
            f"a dry run needs a shim of 30 lines of C++, and {command[0]} cannot compile it for torch "
            f"{importlib.metadata.version('torch')}: {reason or f'exit code {result.returncode}'}"
        )


def install() -> None:
    """Load the shim, then import torch; from now on fake CUDA tensors may have gradients in this process.

    Raises:
        DryRunUnavailable: torch is imported already, there is no compiler, or the shim cannot be built or loaded.
    """
    if _loaded:
        return
    if "torch" in sys.modules:
        raise DryRunUnavailable("a dry run needs a process in which torch is not imported yet.")
    path = library()
    # The loader must know torch's libraries before the shim, which refers to them, is loaded.
    folder = Path(str(importlib.util.find_spec("torch").origin)).parent / "lib"  # type: ignore[union-attr]
    try:
        for name in ("libc10.so", "libtorch_cpu.so"):
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
        shim = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise DryRunUnavailable(f"the shim of the dry run cannot be loaded: {error}") from error
    import torch  # noqa: F401

    shim.rlhf_peft_install_guard()
    _loaded.append(shim)
