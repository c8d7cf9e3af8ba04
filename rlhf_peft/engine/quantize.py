"""Loads the one base model, quantized where its shapes and the device allow.

Left out on purpose: offloading to disk and multi-GPU placement of one model. One base, one device; several
devices each hold a copy (DDP).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..errors import ModelError
from ..kit.quantizer import UNQUANTIZED, Quantizer, linear_sizes
from .base_spec import (
    BaseSpec,
    check_safetensors,
    load_config,
    not_loaded,
    quiet,
    resolve_device,
    resolve_dtype,
)
from .targets import linear_layers, stacked_experts

log = logging.getLogger("rlhf_peft")

DEQUANTIZED = ("fp8", "mxfp4")
"""Methods of stored checkpoints that transformers dequantizes as it loads, where it has no kernels for them."""


def skeleton_of(source: BaseSpec, config: PretrainedConfig) -> PreTrainedModel:
    """The model without weights."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)
    except (ValueError, ImportError) as error:
        raise ModelError(not_loaded(source, error)) from error


def refusals(skeleton: PreTrainedModel, quantizer: Quantizer, device: torch.device) -> dict[str, str]:
    """Linear layers that a quantizer leaves as they are on such a device: full name to reason."""
    reasons = {name: quantizer.refuses(layer, device) for name, layer in linear_layers(skeleton).items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def stored_quantization(config: Any) -> dict[str, Any] | None:
    """The `quantization_config` of a checkpoint that is stored quantized; None: it is not."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    return dict(stored if isinstance(stored, Mapping) else stored.to_dict())


def method_of(stored: Mapping[str, Any]) -> str:
    """What a checkpoint is stored quantized with, such as `gptq`."""
    method = stored.get("quant_method")
    return str(getattr(method, "value", method) or "an unnamed method")


def quantizer_of(spec: BaseSpec, config: Any) -> Quantizer:
    """The quantizer that holds a base: the chosen one, or the one that reads what is stored quantized already.

    Raises:
        ModelError: the checkpoint is stored quantized, and is to be quantized again or read by no quantizer.
    """
    stored = stored_quantization(config)
    if stored is None:
        return spec.quantizer
    method = method_of(stored)
    reader = next((q for q in spec.readers if q.reads({**stored, "quant_method": method})), None)
    if spec.quantizer.bits is not None:
        remedy = ", or set model.quantization=none to use it as it is" if reader is not None else ""
        raise ModelError(
            f"model.path: {spec.path} is quantized already (with {method}); name its unquantized original{remedy}."
        )
    if reader is None and method not in DEQUANTIZED:
        raise ModelError(_unread(spec, method))
    return reader or spec.quantizer


def _unread(spec: BaseSpec, method: str) -> str:
    return (
        f"model.path: {spec.path} is stored quantized with {method}, which no quantizer here reads: its weights cannot "
        "be merged with an adapter. Name its unquantized original, or install a plugin whose quantizer reads it: "
        "rlhf-peft plugins list shows those that are installed."
    )


def _report(refused: Mapping[str, str]) -> None:
    kinds = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in refused}))
    reasons = "; ".join(sorted(set(refused.values())))
    log.warning("%d layers stay unquantized (%s): %s", len(refused), kinds, reasons)


def _skipped(spec: BaseSpec, config: PretrainedConfig, device: torch.device) -> list[str] | None:
    """Patterns of the modules not to quantize; None leaves it to transformers (the output embedding)."""
    skeleton = skeleton_of(spec, config)
    refused = refusals(skeleton, spec.quantizer, device)
    if not refused:
        return None
    if len(refused) < len(linear_layers(skeleton)):  # else an error says it
        _report(refused)
    head = skeleton.get_output_embeddings()
    output_head = [name for name, module in skeleton.named_modules() if module is head]
    return [re.escape(name) for name in [*sorted(refused), *output_head]]


def _load_arguments(
    spec: BaseSpec, config: PretrainedConfig, quantizer: Quantizer, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """What `from_pretrained` is given so that it quantizes; nothing where weights stay as they are stored."""
    if quantizer.devices is not None and device.type not in quantizer.devices:
        none = spec.quantizer.bits is None
        remedy = "Name its unquantized original." if none else "Use model.quantization=none."
        raise ModelError(
            f"model.quantization: {quantizer.label} has no kernels for {device.type}, only for "
            f"{', '.join(quantizer.devices)}. {remedy}"
        )
    if quantizer.bits is None or stored_quantization(config) is not None:
        return {}
    try:
        return quantizer.load_arguments(dtype, _skipped(spec, config, device))
    except ImportError as error:
        raise ModelError(
            f"model.quantization: {quantizer.label} cannot be used here ({error}). Install what it needs, or use "
            "model.quantization=none."
        ) from error


def load_model(spec: BaseSpec) -> tuple[PreTrainedModel, torch.device, torch.dtype, Quantizer]:
    """The base model, frozen, in eval mode, on its device; and the quantizer that knows its layers.

    Raises:
        ModelError: the path, the device or the quantization does not work here.
    """
    device = resolve_device(spec.device)
    dtype = resolve_dtype(spec.compute_dtype, device)
    config = load_config(spec)
    quantizer = quantizer_of(spec, config)
    arguments = _load_arguments(spec, config, quantizer, device, dtype)
    model = _from_pretrained(spec, config, device, dtype, arguments)
    stored = stored_quantization(model.config)
    if quantizer.bits is None and stored is not None:
        raise ModelError(_unread(spec, method_of(stored)))
    try:
        quantizer.prepare(model)
    except ValueError as error:
        raise ModelError(not_loaded(spec, error)) from error
    model.requires_grad_(False)
    model.eval()
    if quantizer.bits is not None and quantizer is spec.quantizer:
        _check_quantized(model, spec)
        if device.type == "cpu":
            _let_go_of_file(model)
    return model, device, dtype, quantizer


def _let_go_of_file(model: PreTrainedModel) -> None:
    """Copy what is not quantized: as views of the mapped file these tensors would keep all of it in memory."""
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter:
            parameter.data = parameter.data.clone()


def _from_pretrained(
    source: BaseSpec,
    config: PretrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    arguments: Mapping[str, Any],
) -> PreTrainedModel:
    kwargs = dict(arguments)
    if source.attn_implementation != "auto":
        kwargs["attn_implementation"] = source.attn_implementation
    check_safetensors(source.location, source.revision)
    try:
        with quiet():
            model, loading_info = AutoModelForCausalLM.from_pretrained(
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
    missing = sorted(loading_info["missing_keys"])
    if missing:
        raise ModelError(
            f"model.path: the weights of {source.path} lack {len(missing)} tensors of "
            f"{type(model).__name__}, the first {missing[0]}; they would be random. Expected the weights of "
            "a whole causal language model."
        )
    return model


def _check_quantized(model: PreTrainedModel, spec: BaseSpec) -> None:
    """Raise ModelError if nothing was quantized; say which stacks of experts stay as they are."""
    if not any(spec.quantizer.is_quantized(module) for module in model.modules()):
        raise ModelError(
            f"model.quantization: no layer of {spec.path} ({type(model).__name__}) can be held as "
            f"{spec.quantizer.label} on this device. Use model.quantization=none."
        )
    stacked = [p.numel() for p in stacked_experts(model).values()]
    if stacked:
        log.warning("%d stacks of expert weights stay unquantized (%d values)", len(stacked), sum(stacked))


def quantization_error(spec: BaseSpec) -> float:
    """How far a quantized layer's output is from the plain layer's, relatively, on random numbers.

    The first quantized layer of the model is taken, and its backward pass is computed as well.

    Args:
        spec: of a small base, with its quantizer.

    Raises:
        ModelError: it cannot be loaded so.
        ValueError: no gradient, or one that is not finite, came back through the layer.
    """
    plain, *_ = load_model(replace(spec, quantizer=UNQUANTIZED))
    model, device, dtype, quantizer = load_model(spec)
    name, layer = next(
        (name, layer) for name, layer in model.named_modules() if quantizer.is_quantized(layer)
    )
    inputs = linear_sizes(plain.get_submodule(name))[0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, inputs, generator=generator).to(device, dtype).requires_grad_()
    out = layer(x)
    out.square().sum().backward()
    if x.grad is None or not bool(x.grad.isfinite().all()):
        raise ValueError(f"no finite gradient comes back through {type(layer).__name__}")
    with torch.no_grad():
        expected = plain.get_submodule(name)(x)
    return float((out.detach() - expected).norm() / expected.norm())
