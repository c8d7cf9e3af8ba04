"""The base model on a simulated card: made from its configuration alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..engine.base_spec import BaseSpec, load_config, resolve_device, resolve_dtype
from ..engine.loaded_model import LoadedModel
from ..engine.quantize import refusals, skeleton_of
from ..errors import UsageError
from .compat import FakeTensor, Params4bit


def fake_loaded(spec: BaseSpec) -> LoadedModel:
    """What `LoadedModel.load` gives, without weights; the tokenizer is the model's own.

    Raises:
        ModelError: the configuration cannot be loaded.
        UsageError: the quantizer's layers cannot be made without weights.
    """
    device = resolve_device(spec.device)
    dtype = resolve_dtype(spec.compute_dtype, device)
    model = fake_model(spec, device, dtype)
    return LoadedModel(spec, model, device, dtype, spec.quantizer)


def fake_model(spec: BaseSpec, device: torch.device, dtype: torch.dtype) -> Any:
    """A causal language model with fake parameters on a device, quantized as its spec says."""
    config = load_config(spec)
    config.dtype = dtype
    model = skeleton_of(spec, config)
    if spec.quantizer.bits is not None:
        _quantize(model, spec, device, dtype)
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, FakeTensor):
                empty = torch.empty(parameter.shape, dtype=dtype, device=device)
                setattr(module, key, nn.Parameter(empty, requires_grad=False))
        for key, buffer in list(module.named_buffers(recurse=False)):
            if not isinstance(buffer, FakeTensor):
                setattr(module, key, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
    model.tie_weights()
    model.requires_grad_(False)
    model.eval()
    return model


def _quantize(model: Any, spec: BaseSpec, device: torch.device, dtype: torch.dtype) -> None:
    """Put layers of the quantizer in the place of linear layers; bitsandbytes' 4 bits are known."""
    import bitsandbytes

    kind = getattr(spec.quantizer, "kind", None)
    if kind not in ("nf4", "fp4"):
        raise UsageError(
            f"a dry run knows the quantizers nf4, fp4 and none, not {spec.quantizer.label}. Use model.quantization=nf4."
        )
    nested = bool(spec.quantizer.options.double_quantization)  # type: ignore[attr-defined]
    refused, head = refusals(model, spec.quantizer, device), model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or layer is head or name in refused:
            continue
        new = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype, quant_type=kind,
            device="meta",
        )  # fmt: skip
        new.weight = _weight(layer.out_features, layer.in_features, dtype, device, kind, nested)
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, new)
    model.is_loaded_in_4bit = model.is_quantized = True
    model.quantization_method = "bitsandbytes"
    model.hf_device_map = {"": device}
    model.hf_quantizer = SimpleNamespace(
        is_trainable=True,
        is_qat_trainable=False,
        is_compileable=False,
        quantization_config=SimpleNamespace(quant_method="bitsandbytes", to_dict=dict),
    )


def _weight(
    outputs: int, inputs: int, dtype: torch.dtype, device: torch.device, kind: str, nested: bool
) -> Any:
    """A fake 4-bit weight with its scales, laid out as bitsandbytes does."""
    from bitsandbytes.functional import QuantState

    count = outputs * inputs
    blocks = -(-count // 64)

    def room(size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    scales: dict[str, Any] = {"absmax": room(blocks, torch.float32)}
    if nested:
        second = QuantState(
            absmax=room(-(-blocks // 256), torch.float32), code=room(256, torch.float32), blocksize=256,
            dtype=torch.float32,
        )  # fmt: skip
        scales = {
            "absmax": room(blocks, torch.uint8),
            "offset": torch.empty((), device=device),
            "state2": second,
        }
    state = QuantState(
        shape=torch.Size((outputs, inputs)), code=room(16, torch.float32), blocksize=64, quant_type=kind, dtype=dtype,
        **scales,
    )  # fmt: skip
    weight: Any = nn.Parameter(
        torch.empty(((count + 1) // 2, 1), dtype=torch.uint8, device=device), requires_grad=False
    )
    weight.__class__ = Params4bit
    weight._is_param = True
    weight.quant_state, weight.blocksize, weight.compress_statistics, weight.quant_type = (
        state,
        64,
        nested,
        kind,
    )
    weight.quant_storage, weight.bnb_quantized, weight.module = torch.uint8, True, None
    return weight
