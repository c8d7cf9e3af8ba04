"""PEFT's helper that gives the dense weight of a layer of any quantization that it knows.

`peft.utils.integrations.dequantize_module_weight` is no part of PEFT's documented interface (as of 0.21). If it goes,
decoding with merged weights and merged exports stop with an ImportError here.
"""

from __future__ import annotations

from typing import Any

from peft.utils.integrations import dequantize_module_weight
from torch import Tensor

__all__ = ["dequantized"]


def dequantized(layer: Any) -> Tensor:
    """A layer's weight, as the layer lays it out, dense and without gradient."""
    weight: Tensor = dequantize_module_weight(layer)
    return weight.detach()
