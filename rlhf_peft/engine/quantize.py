"""Loads the one base model, quantized where its shapes and the device allow.

Left out on purpose: offloading to disk and multi-GPU placement of one model. One base, one device; several
devices each hold a copy (DDP).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError
from .base_spec import (
    OTHER_SHAPES,
    BaseSpec,
    check_safetensors,
    load_config,
    not_loaded,
    quiet,
    resolve_device,
    resolve_dtype,
)
from .compat import compute_alike_on_every_cpu
from .targets import stacked_experts

log = logging.getLogger("rlhf_peft")

BLOCK = 64
"""Weights that share one 4-bit scale (bitsandbytes' default block size)."""

KNOWN_METHOD = "bitsandbytes"
"""How a checkpoint may be stored quantized."""

BACKENDS = ("cpu", "cuda", "xpu")
"""Kinds of device that bitsandbytes has kernels for."""


def replaceable(module: nn.Module) -> bool:
    """Whether bitsandbytes has a quantized layer for this one; it has none for subclasses of `Linear`."""
    return type(module) is nn.Linear or isinstance(module, Conv1D)


def skeleton_of(source: BaseSpec, config: PretrainedConfig) -> PreTrainedModel:
    """The model without weights."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)
    except (ValueError, ImportError) as error:
        raise ModelError(not_loaded(source, error)) from error


def refused_modules(skeleton: PreTrainedModel) -> dict[str, str]:
    """Layers whose shapes bitsandbytes' 4-bit kernels for CPUs cannot take: module name to reason.

    They want rows of whole blocks; the kernels for GPUs take any shape.
    """
    refused = {}
    head = skeleton.get_output_embeddings()
    for name, module in skeleton.named_modules():
        if module is not head and replaceable(module):
            inputs = module.weight.shape[0] if isinstance(module, Conv1D) else module.weight.shape[1]
            if inputs % BLOCK:
                refused[name] = f"{inputs} inputs are not a whole number of blocks of {BLOCK}"
    return refused


def _report(refused: dict[str, str]) -> None:
    kinds = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in refused}))
    reasons = "; ".join(sorted(set(refused.values())))
    log.warning("%d layers stay unquantized (%s): %s", len(refused), kinds, reasons)


def _skipped(source: BaseSpec, config: PretrainedConfig, device: torch.device) -> list[str] | None:
    """Patterns of the modules not to quantize; None leaves it to transformers (the output embedding)."""
    if device.type != "cpu":
        return None
    skeleton = skeleton_of(source, config)
    refused = refused_modules(skeleton)
    if not refused:
        return None
    _report(refused)
    head = skeleton.get_output_embeddings()
    kept = [name for name, module in skeleton.named_modules() if module is head]
    return [name.replace(".", r"\.") for name in [*sorted(refused), *kept]]


def stored_method(config: Any) -> str | None:
    """What a checkpoint is stored quantized with, such as `bitsandbytes`; None: it is not."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method))


def _check_stored(model: PreTrainedModel, source: BaseSpec) -> None:
    """Raise ModelError if the weights are held in a form that cannot be merged with an adapter here."""
    method = stored_method(model.config)
    if method not in (None, KNOWN_METHOD):
        raise ModelError(
            f"model.path: {source.path} is stored quantized with {method}, whose weights cannot be merged with an "
            "adapter here. Name its unquantized original, or one that is stored with bitsandbytes."
        )


def _quantization_config(
    source: BaseSpec, config: PretrainedConfig, device: torch.device, dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    if source.quantization == "none":
        return None
    if (stored := stored_method(config)) is not None:
        use = ", or set model.quantization=none to use it as it is" if stored == KNOWN_METHOD else ""
        raise ModelError(
            f"model.path: {source.path} is quantized already (with {stored}); name its unquantized original{use}."
        )
    if device.type not in BACKENDS:
        raise ModelError(
            f"model.quantization: {source.quantization} needs bitsandbytes, which has no kernels for "
            f"{device.type}. Use model.quantization=none."
        )
    if source.quantization == "int8":
        _hush_int8()
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=source.quantization,
        bnb_4bit_use_double_quant=source.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_skipped(source, config, device),
    )


def _not_a_cast(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in str(record.msg)


def _hush_int8() -> None:
    """Drop what bitsandbytes logs: the dtype of its inputs at every single product."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_not_a_cast)


def load_model(source: BaseSpec) -> tuple[PreTrainedModel, torch.device, torch.dtype]:
    """The base model, frozen, in eval mode, on its device.

    Raises:
        ModelError: the path, the device or the quantization does not work here.
    """
    device = resolve_device(source.device)
    dtype = resolve_dtype(source.compute_dtype, device)
    config = load_config(source)
    quantization = _quantization_config(source, config, device, dtype)
    model = _from_pretrained(source, config, device, dtype, quantization)
    _check_stored(model, source)
    model.requires_grad_(False)
    model.eval()
    compute_alike_on_every_cpu(model)
    if quantization is not None:
        _check_quantized(model, source)
        if device.type == "cpu":
            _let_go_of_file(model)
    return model, device, dtype


def _let_go_of_file(model: PreTrainedModel) -> None:
    """Copy what is not quantized: as views of the mapped file these tensors would keep all of it in memory."""
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter:
            parameter.data = parameter.data.clone()


def _from_pretrained(
    source: BaseSpec, config: PretrainedConfig, device: torch.device, dtype: torch.dtype, quantization: Any
) -> PreTrainedModel:
    kwargs: dict[str, Any] = {} if quantization is None else {"quantization_config": quantization}
    if source.attn_implementation != "auto":
        kwargs["attn_implementation"] = source.attn_implementation
    check_safetensors(source.location, source.revision)
    try:
        with quiet():
            model, found = AutoModelForCausalLM.from_pretrained(
                source.location,
                config=config,
                revision=source.revision,
                dtype=dtype,
                device_map={"": device},
                trust_remote_code=source.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **kwargs,
            )
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"model.path: {source.path} does not fit into the memory of {device} ({error})."
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(not_loaded(source, error)) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"model.path: the weights of {source.path} lack {len(missing)} tensors of "
            f"{type(model).__name__}, the first {missing[0]}; they would be random. Expected the weights of "
            "a whole causal language model."
        )
    return model


def _check_quantized(model: PreTrainedModel, source: BaseSpec) -> None:
    """Raise ModelError if nothing was quantized, or weights of other shapes were; tell of stacked experts, which stay.

    transformers before 5.23 takes any shape for a layer that it quantizes.
    """
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and tuple(state.shape) != (module.out_features, module.in_features):
            raise ModelError(not_loaded(source, ValueError(f"{OTHER_SHAPES} for {name}")))
    if not any(type(module).__module__.startswith("bitsandbytes") for module in model.modules()):
        raise ModelError(
            f"model.quantization: no layer of {source.path} ({type(model).__name__}) can be held as "
            f"{source.quantization} on this device. Use model.quantization=none."
        )
    stacked = [p.numel() for p in stacked_experts(model).values()]
    if stacked:
        log.warning("%d stacks of expert weights stay unquantized (%d values)", len(stacked), sum(stacked))
