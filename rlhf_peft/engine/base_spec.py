"""Where a base model comes from: its path, its device, its dtype, its configuration."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils import logging as transformers_logging

from ..errors import ModelError
from ..kit.quantizer import UNQUANTIZED, Quantizer

NOISE = ("dropout", "_pdrop", "dropout_prob", "_drop", "layerdrop", "jitter_noise")
"""Endings of the configuration keys that make a forward in train mode random."""

OTHER_SHAPES = "its weights have other shapes than its config.json gives"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """Where a base model comes from and how it is to be held.

    Attributes:
        path: hub id, folder, or `builtin:<name>` for a model shipped with this package.
        revision: branch, tag or commit on the hub.
        quantizer: how its weights are held; by default as they are stored.
        readers: quantizers that are asked, in this order, whether they read a checkpoint that is stored quantized.
        compute_dtype: auto, float32, bfloat16 or float16.
        attn_implementation: auto, or a name of transformers.
        device: auto or a torch device.
        trust_remote_code: run code from the model's repository.
    """

    path: str
    revision: str | None = None
    quantizer: Quantizer = UNQUANTIZED
    readers: tuple[Quantizer, ...] = ()
    compute_dtype: str = "auto"
    attn_implementation: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False

    @property
    def location(self) -> str:
        """What transformers is given: `path`, or the folder of a shipped model."""
        if not self.path.startswith("builtin:"):
            return self.path
        assets = Path(__file__).parent.parent / "assets"
        folder = assets / self.path.removeprefix("builtin:")
        if not (folder / "config.json").is_file():
            known = ", ".join(sorted(f"builtin:{f.parent.name}" for f in assets.glob("*/config.json")))
            raise ModelError(f"model.path: {self.path} is not shipped with this package. Shipped: {known}.")
        return str(folder)


def resolve_device(device: str) -> torch.device:
    """The device that a recipe's `device` means; a CUDA device always has its index.

    Raises:
        ModelError: the device is unknown or not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
        if resolved.type == "meta":
            raise RuntimeError("it holds no data")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split(". ")[0].splitlines()[0]
        raise ModelError(
            f"device: {device} cannot be used here ({reason}). Use `device: auto` or `cpu`."
        ) from error
    if resolved.type == "cuda" and resolved.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return resolved


def hardware(device: torch.device) -> dict[str, str | int | float]:
    """What a run computes on: a GPU's name and memory in GB, else the CPU's name, its cores and the main memory."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return {"device": str(device), "name": card.name, "memory_gb": round(card.total_memory / 2**30, 1)}
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"device": str(device), "name": _cpu(), "cores": cores, "memory_gb": memory}


def _cpu() -> str:
    """The processor's name; Linux tells it in a file only."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype that a recipe means on a device."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def load_config(source: BaseSpec) -> PretrainedConfig:
    """The model's configuration, with dropout and other noise off.

    Raises:
        ModelError: nothing is found, or it is no language model.
    """
    try:
        config = AutoConfig.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(not_loaded(source, error)) from error
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for key, value in list(vars(part).items()):
            if isinstance(value, float) and key.endswith(NOISE):
                setattr(part, key, 0.0)
    return config


def not_loaded(source: BaseSpec, error: Exception) -> str:
    """What to tell a person when transformers could not load from a source."""
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0].rstrip(".")
    if "ignore_mismatched_sizes" in text:
        first = OTHER_SHAPES
    if "trust_remote_code" in text:
        return (
            f"model.path: {source.path} brings code of its own. If you trust it, add --trust-remote-code to "
            "the command line (a recipe cannot ask for it)."
        )
    if "attn_implementation" in text or "attention implementation" in text:
        return (
            f"model.attn_implementation: {source.attn_implementation} cannot be used with {source.path} "
            f"({first}). Use model.attn_implementation=auto."
        )
    looks_local = source.path.startswith((".", "/", "~")) or Path(source.path).exists()
    if looks_local and not Path(source.path).exists():
        first = "there is no such folder"
    what = (
        "a folder with config.json and weights"
        if looks_local
        else "a hub id that can be reached, or a folder"
    )
    expected = f"Expected {what} (safetensors), or builtin:tiny."
    return f"model.path: {source.path} cannot be loaded ({first}). {expected}"


def check_safetensors(location: str, revision: str | None = None) -> None:
    """Refuse a checkpoint in parts of which one would be unpickled: `use_safetensors` of transformers looks at no part.

    Args:
        location: hub id or folder.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelError: its index names a file that is no safetensors file, or cannot be read.
    """
    index = Path(location) / SAFE_WEIGHTS_INDEX_NAME
    if not Path(location).is_dir():
        try:
            index = Path(hf_hub_download(location, SAFE_WEIGHTS_INDEX_NAME, revision=revision))
        except (
            OSError,
            ValueError,
        ):  # It has none, or it cannot be reached, of which the loading itself tells.
            return
    if not index.is_file():
        return
    try:
        parts = {str(part) for part in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index}: cannot be read as the index of a checkpoint ({error}).") from error
    pickled = sorted(part for part in parts if not part.endswith(".safetensors"))
    if pickled:
        raise ModelError(
            f"{index}: it names {pickled[0]}, which is no safetensors file, and pickled weights are never read. Save "
            "the model again with save_pretrained."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers; as before on exit."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
