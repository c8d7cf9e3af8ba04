"""`int8`: 8 bits per weight, and one scale for each row (LLM.int8(), https://arxiv.org/abs/2208.07339).

Inputs are rounded to 8 bits too, except those with large values, which are multiplied in half precision. bitsandbytes
computes; transformers quantizes during loading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_peft.plugin import LoadCode, Options, QuantizerBase

from .compat import silence_cast_messages
from .four_bits import BACKENDS, METHOD, bnb_refuses, expression


class Int8Options(Options):
    """`int8` has no options."""


class Int8(QuantizerBase):
    """Stores weights as 8-bit integers, with a scale for each row."""

    Options = Int8Options
    label = "int8"
    bits = 8
    weight_only = False
    devices = BACKENDS

    def __init__(self, options: Int8Options | None = None) -> None:
        self.options = options or Int8Options()

    def load_arguments(self, dtype: torch.dtype, skip: Sequence[str] | None) -> dict[str, Any]:
        """Arguments of `from_pretrained`: 8 bits."""
        from transformers import BitsAndBytesConfig

        skipped = None if skip is None else list(skip)
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)}

    def refuses(self, layer: nn.Module, device: torch.device) -> str | None:
        """The reason why a layer cannot be quantized; the kernels take any shape."""
        return bnb_refuses(layer)

    def reads(self, stored: Mapping[str, Any]) -> bool:
        """Whether a checkpoint was stored by bitsandbytes in 8 bits."""
        eight = stored.get("load_in_8bit") or stored.get("_load_in_8bit")
        return stored.get("quant_method") == METHOD and bool(eight)

    def prepare(self, model: nn.Module) -> None:
        """Silence the message that bitsandbytes logs at every product."""
        silence_cast_messages()

    def is_quantized(self, layer: nn.Module) -> bool:
        """Whether a layer is bitsandbytes' `Linear8bitLt`."""
        from bitsandbytes.nn import Linear8bitLt

        return isinstance(layer, Linear8bitLt)

    def dense_weight(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        """The dequantized weight, [out, in].

        PEFT's helper is not used: on CPUs it puts a new parameter without scales into the layer.
        """
        from bitsandbytes.functional import int8_vectorwise_dequant

        weight: Any = layer.weight
        state: Any = layer.state
        scales = weight.SCB if state.SCB is None else state.SCB
        dense: Tensor = int8_vectorwise_dequant(weight.data, scales)
        return dense.to(dtype)

    def bytes(self, inputs: int, outputs: int) -> int:
        """Memory of a layer: one byte per weight, and a float32 scale per row."""
        return inputs * outputs + 4 * outputs

    def load_code(self, skip: Sequence[str]) -> LoadCode:
        """Code with `BitsAndBytesConfig` for a model card."""
        options: dict[str, Any] = {
            "load_in_8bit": True,
            **({"llm_int8_skip_modules": list(skip)} if skip else {}),
        }
        return LoadCode(imports={"transformers": ("BitsAndBytesConfig",)}, config=expression(options))
