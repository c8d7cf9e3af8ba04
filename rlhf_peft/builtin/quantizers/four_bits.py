"""`nf4` and `fp4`: 4 bits per weight, and one scale for each 64 weights.

QLoRA (https://arxiv.org/abs/2305.14314), section 3. bitsandbytes computes; transformers quantizes during loading.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from rlhf_peft.plugin import LoadCode, Options, QuantizerBase, linear_sizes

from .compat import disable_bf16_cpu_kernels

BLOCK, SUPERBLOCK = 64, 256
"""Number of weights that share a scale, and of scales that share a second scale: bitsandbytes' defaults."""

BACKENDS = ("cpu", "cuda", "xpu")
"""Kinds of device that bitsandbytes has kernels for."""

METHOD = "bitsandbytes"
"""Name of bitsandbytes in the `quant_method` of a checkpoint's config.json."""

CPU_FIX_CODE = (
    "for module in base.modules():  # bitsandbytes: the same numbers on every CPU",
    '    if hasattr(module, "support_avx512bf16_for_cpu"):',
    "        module.support_avx512bf16_for_cpu = False",
)
CPU_FIX_NOTE = (
    "On a CPU with AVX512-BF16 bitsandbytes computes 4-bit layers in bfloat16: logits come out some 0.05 off, "
    'or it stops with "N must be divisible by block_n". The loop over `base.modules()` above switches that '
    "off; on a GPU, and on other CPUs, it changes nothing."
)
VLLM_NEEDS = (
    "pip install vllm-bnb-plugin  # vLLM 0.28 and later quantize to NF4 with it; "
    "before: pip install bitsandbytes"
)


def bnb_refuses(layer: nn.Module) -> str | None:
    """The reason why bitsandbytes cannot quantize a layer, or None; it cannot quantize subclasses of `Linear`."""
    from transformers.pytorch_utils import Conv1D

    is_supported = type(layer) is nn.Linear or isinstance(layer, Conv1D)
    return None if is_supported else f"bitsandbytes has no layer for {type(layer).__name__}"


def expression(options: Mapping[str, Any]) -> str:
    """Python code of a `BitsAndBytesConfig` with these options."""
    return f"BitsAndBytesConfig({', '.join(f'{key}={value!r}' for key, value in options.items())})"


class FourBitOptions(Options):
    """Options of `nf4` and `fp4`."""

    double_quantization: bool = Field(True, description="Quantize the scales too (QLoRA, section 3).")


class Nf4(QuantizerBase):
    """Stores weights as 4-bit NormalFloats: 16 levels that are quantiles of the normal distribution."""

    Options = FourBitOptions
    bits = 4
    devices = BACKENDS
    kind = "nf4"

    def __init__(self, options: FourBitOptions | None = None) -> None:
        self.options = options or FourBitOptions()
        self.label = f"{self.kind}{' double' if self.options.double_quantization else ''}"

    def load_arguments(self, dtype: torch.dtype, skip: Sequence[str] | None) -> dict[str, Any]:
        """Arguments of `from_pretrained`: 4 bits, computed in `dtype`."""
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.options.double_quantization,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=None if skip is None else list(skip),
        )
        return {"quantization_config": config}

    def refuses(self, layer: nn.Module, device: torch.device) -> str | None:
        """The reason why a layer cannot be quantized, or None. Kernels for CPUs need whole blocks."""
        reason = bnb_refuses(layer)
        if reason is None and device.type == "cpu" and linear_sizes(layer)[0] % BLOCK:
            return f"{linear_sizes(layer)[0]} inputs are not a whole number of blocks of {BLOCK}"
        return reason

    def reads(self, stored: Mapping[str, Any]) -> bool:
        """Whether a checkpoint was stored by bitsandbytes in 4 bits of this kind."""
        four_bits = stored.get("load_in_4bit") or stored.get("_load_in_4bit")
        return (
            stored.get("quant_method") == METHOD
            and bool(four_bits)
            and stored.get("bnb_4bit_quant_type", "fp4") == self.kind
        )

    def prepare(self, model: nn.Module) -> None:
        """Make every CPU compute the same, and check that every weight has its scales and the shape of its layer.

        transformers before 5.23 accepts any shape for a layer that it quantizes.

        Raises:
            ValueError: a weight has no scales or another shape.
        """
        disable_bf16_cpu_kernels(model)
        for name, layer in model.named_modules():
            if not self.is_quantized(layer):
                continue
            state = getattr(layer.weight, "quant_state", None)
            if state is None:
                raise ValueError(
                    f"config.json says that it is stored in 4 bits, but the weight of {name} is not"
                )
            if tuple(state.shape) != (layer.out_features, layer.in_features):
                raise ValueError(f"its weights have other shapes than its config.json gives for {name}")

    def is_quantized(self, layer: nn.Module) -> bool:
        """Whether a layer is bitsandbytes' `Linear4bit`."""
        from bitsandbytes.nn import Linear4bit

        return isinstance(layer, Linear4bit)

    def dense_weight(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        """The dequantized weight, [out, in], computed in `dtype`."""
        from bitsandbytes.functional import dequantize_4bit

        weight: Any = layer.weight
        state = weight.quant_state
        if state.dtype != dtype:  # bitsandbytes computes in the dtype that stands there.
            state = copy.copy(state)
            state.dtype = dtype
        dense: Tensor = dequantize_4bit(weight.data, state)
        return dense

    def bytes(self, inputs: int, outputs: int) -> int:
        """Memory of a layer: N / 2 bytes for N weights, and a float32 scale for each 64 of them.

        With double quantization a scale is one byte, and there is a float32 for each 256 scales.
        """
        n = inputs * outputs
        blocks = -(-n // BLOCK)
        double = self.options.double_quantization
        scales = blocks + 4 * -(-blocks // SUPERBLOCK) + 1024 if double else 4 * blocks
        return -(-n // 2) + scales + 64

    def load_code(self, skip: Sequence[str]) -> LoadCode:
        """Code with `BitsAndBytesConfig` for a model card; vLLM quantizes to NF4 during loading."""
        options: dict[str, Any] = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.kind,
            "bnb_4bit_use_double_quant": self.options.double_quantization,
            **({"llm_int8_skip_modules": list(skip)} if skip else {}),
        }
        normal = self.kind == "nf4"
        return LoadCode(
            imports={"transformers": ("BitsAndBytesConfig",)},
            config=expression(options),
            after=CPU_FIX_CODE,
            note=CPU_FIX_NOTE,
            vllm="--quantization bitsandbytes" if normal else "",
            vllm_needs=VLLM_NEEDS if normal else "",
        )


class Fp4(Nf4):
    """Stores weights as 4-bit floats: one bit of sign, two of exponent, one of fraction."""

    kind = "fp4"
