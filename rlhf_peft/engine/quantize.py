"""Loads the one base model, quantized where its shapes and the device allow.

Left out on purpose: offloading to disk and multi-GPU placement of one model. One base, one device; several devices
each hold a copy (DDP).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError

log = logging.getLogger("rlhf_peft")

BLOCK = 64
"""Weights that share one 4-bit scale (bitsandbytes' default block size)."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a base model comes from and how it is to be held.

    Attributes:
        path: hub id, folder, or `builtin:<name>` for a model shipped with this package.
        revision: branch, tag or commit on the hub.
        quantization: nf4, fp4, int8 or none.
        double_quantization: quantize the 4-bit scales too.
        compute_dtype: auto, float32, bfloat16 or float16.
        attn_implementation: auto, or a name of transformers.
        device: auto or a torch device.
        trust_remote_code: run code from the model's repository.
    """

    path: str
    revision: str | None = None
    quantization: str = "nf4"
    double_quantization: bool = True
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
    """The device that a recipe's `device` means.

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
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device: {device} cannot be used here ({reason}). Use `device: auto` or `cpu`.") from error
    return resolved


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype that a recipe means on a device."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


def load_config(source: Source) -> PretrainedConfig:
    """The model's configuration, with dropout off.

    Raises:
        ModelError: nothing is found, or it is no language model.
    """
    try:
        config = AutoConfig.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_not_found(source, error)) from error
    for key, value in list(vars(config).items()):
        if isinstance(value, float) and key.endswith(("dropout", "_pdrop", "dropout_prob", "_drop")):
            setattr(config, key, 0.0)
    return config


def _not_found(source: Source, error: Exception) -> str:
    first = str(error).strip().splitlines()[0]
    if "trust_remote_code" in str(error):
        return (
            f"model.path: {source.path} brings code of its own. If you trust it, add --trust-remote-code to the "
            "command line (a recipe cannot ask for it)."
        )
    looks_local = source.path.startswith((".", "/", "~")) or Path(source.path).exists()
    what = "a folder with config.json and weights" if looks_local else "a hub id that can be reached, or a folder"
    return f"model.path: {source.path} cannot be loaded ({first}). Expected {what}, or builtin:tiny."


def _linear_shapes(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a layer that bitsandbytes would replace, or None."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return None


def refused_modules(config: PretrainedConfig, quantization: str, device: torch.device, trust: bool) -> dict[str, str]:
    """Layers whose shapes the quantization backend cannot take: module name to reason.

    bitsandbytes' 4-bit kernels for CPUs want rows of whole blocks; its GPU kernels take any shape.
    """
    if quantization not in ("nf4", "fp4") or device.type != "cpu":
        return {}
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    head = skeleton.get_output_embeddings()
    refused = {}
    for name, module in skeleton.named_modules():
        shapes = _linear_shapes(module)
        if shapes and module is not head and shapes[0] % BLOCK:
            refused[name] = f"{shapes[0]} inputs are not a whole number of blocks of {BLOCK}"
    return refused


def _quantization_config(
    source: Source, config: PretrainedConfig, device: torch.device, dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    if source.quantization == "none":
        return None
    if device.type not in ("cpu", "cuda", "xpu"):
        raise ModelError(
            f"model.quantization: {source.quantization} needs bitsandbytes, which has no kernels for {device.type}. "
            "Use model.quantization=none."
        )
    if source.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    refused = refused_modules(config, source.quantization, device, source.trust_remote_code)
    skip = None
    if refused:
        names = sorted(refused)
        kinds = sorted({name.rsplit(".", 1)[-1] for name in names})
        log.warning(
            "%d layers stay unquantized (%s): %s", len(names), ", ".join(kinds), "; ".join(sorted(set(refused.values())))
        )
        skip = [*(name.replace(".", r"\.") for name in names), "lm_head", "embed_out"]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=source.quantization,
        bnb_4bit_use_double_quant=source.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )


def load_model(source: Source) -> tuple[PreTrainedModel, torch.device, torch.dtype]:
    """The base model, frozen, in eval mode, on its device.

    Raises:
        ModelError: the path, the device or the quantization does not work here.
    """
    device = resolve_device(source.device)
    dtype = resolve_dtype(source.compute_dtype, device)
    config = load_config(source)
    if getattr(config, "quantization_config", None) is not None and source.quantization != "none":
        raise ModelError(
            f"model.path: {source.path} is quantized already; name its unquantized original, or set "
            "model.quantization=none to use it as it is."
        )
    kwargs: dict[str, Any] = {}
    if source.attn_implementation != "auto":
        kwargs["attn_implementation"] = source.attn_implementation
    quantization = _quantization_config(source, config, device, dtype)
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.location,
            config=config,
            revision=source.revision,
            dtype=dtype,
            device_map={"": device},
            trust_remote_code=source.trust_remote_code,
            **kwargs,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(_not_found(source, error)) from error
    model.requires_grad_(False)
    model.eval()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Else an eval-mode forward repacks the weights in place for a kernel without autograd.
            module.support_avx512bf16_for_cpu = False
    return model, device, dtype
