"""`int8`: 8 bits a weight and a scale for each row (LLM.int8(), https://arxiv.org/abs/2208.07339).

Inputs are rounded to 8 bits too, but for those with large values, which are multiplied in half precision. bitsandbytes
computes; transformers quantizes as it loads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_peft.plugin import LoadCode, Options, QuantizerBase

from .compat import quiet_int8
from .four_bits import BACKENDS, METHOD, bnb_refuses, expression


class Int8Options(Options):
    """There is nothing to choose."""


class Int8(QuantizerBase):
    """Weights as 8-bit whole numbers, with a scale for each row."""

    Options = Int8Options
    label = "int8"
    bits = 8
    weight_only = False
    devices = BACKENDS

    def __init__(self, options: Int8Options | None = None) -> None:
        self.options = options or Int8Options()

    def load_arguments(self, dtype: torch.dtype, skip: Sequence[str] | None) -> dict[str, Any]:
        """8 bits."""
        from transformers import BitsAndBytesConfig

        skipped = None if skip is None else list(skip)
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)}

    def refuses(self, layer: nn.Module, device: torch.device) -> str | None:
        """The kernels take any shape."""
        return bnb_refuses(layer)

    def reads(self, stored: Mapping[str, Any]) -> bool:
        """Checkpoints that bitsandbytes stored in 8 bits."""
        eight = stored.get("load_in_8bit") or stored.get("_load_in_8bit")
        return stored.get("quant_method") == METHOD and bool(eight)

    def prepare(self, model: nn.Module) -> None:
        """Drop what bitsandbytes logs at every product."""
        quiet_int8()

    def is_quantized(self, layer: nn.Module) -> bool:
        """Bitsandbytes' `Linear8bitLt`."""
        from bitsandbytes.nn import Linear8bitLt

        return isinstance(layer, Linear8bitLt)

    def dense_weight(self, layer: nn.Module) -> Tensor:
        """[out, in] float32.

        Not by PEFT's helper: on CPUs it puts a new parameter into the layer, which has lost its scales.
        """
        from bitsandbytes.functional import int8_vectorwise_dequant

        weight: Any = layer.weight
        state: Any = layer.state
        scales = weight.SCB if state.SCB is None else state.SCB
        dense: Tensor = int8_vectorwise_dequant(weight.data, scales)
        return dense

    def bytes(self, inputs: int, outputs: int) -> int:
        """One byte a weight, and a float32 scale a row."""
        return inputs * outputs + 4 * outputs

    def load_code(self, skip: Sequence[str]) -> LoadCode:
        """`BitsAndBytesConfig`."""
        options: dict[str, Any] = {
            "load_in_8bit": True,
            **({"llm_int8_skip_modules": list(skip)} if skip else {}),
        }
        return LoadCode(imports={"transformers": ("BitsAndBytesConfig",)}, config=expression(options))
