"""Checks of the machine: GPUs, memory, quantizers, the dry run, disks and the hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .finding import Finding

if TYPE_CHECKING:
    from ..engine import BaseSpec

SMALL_DISK = 10 * 2**30
"""A disk with less free space than this, in bytes, gets a note."""
WORST_ERROR = 0.2
"""Largest relative error of a quantized layer's output; a larger one means that it is broken."""


def check_device() -> Iterator[Finding]:
    """Report the GPUs and their free memory, or why torch sees none."""
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
            "bf16"
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else "no bf16: model.compute_dtype=auto means float32; float16 takes half the memory (loss scaling is on)"
        )
        detail = f"{card.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GB free, {half}"
        yield Finding(f"GPU {index}", "ok" if free > total / 2 else "note", detail)


def check_memory() -> Iterator[Finding]:
    """Report the free main memory."""
    import psutil

    memory = psutil.virtual_memory()
    yield Finding("memory", "ok", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GB free")


def check_quantization() -> Iterator[Finding]:
    """Quantize a small model and compute with it, because a package may import and yet not work."""
    import torch

    from ..engine import BaseSpec
    from ..registry import Registry

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
        from ..engine.quantize import quantization_error

        error = quantization_error(spec)
    except Exception as problem:  # a broken installation may raise anything
        return Finding(f"quantizer {name}", "wrong", f"{type(problem).__name__}: {problem}", remedy)
    fine = error < WORST_ERROR
    message = f"forward and backward on {spec.device}, error {error:.1%}"
    return Finding(f"quantizer {name}", "ok" if fine else "wrong", message, "" if fine else remedy)


def check_dry_run() -> Iterator[Finding]:
    """Report whether recipes can be tried on a simulated card here; the shim is built, and not loaded."""
    from ..dryrun.shim import DryRunUnavailable, library

    try:
        library()
    except DryRunUnavailable as reason:
        yield Finding("dry run", "note", str(reason))
    else:
        yield Finding("dry run", "ok", "possible: the C++ compiler builds the shim for the simulated card.")


def check_disk() -> Iterator[Finding]:
    """Report the free space of the disks for runs and for models, and check that the current folder can be written."""
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


def check_hub() -> Iterator[Finding]:
    """Report whether the hub can be used: offline mode, and the token."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        yield Finding("hub", "note", "HF_HUB_OFFLINE is set: models come from folders and the cache only.")
    else:
        detail = (
            "a token is there" if get_token() else "no token; public models need none (else: hf auth login)"
        )
        yield Finding("hub", "ok", detail)
