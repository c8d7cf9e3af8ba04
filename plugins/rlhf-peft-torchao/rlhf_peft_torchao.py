"""`torchao`: 8 bits a weight, with a scale for each row or for each group of a row's weights.

torchao computes, in plain torch, so that it also works where bitsandbytes has no kernels; transformers quantizes as it
loads. The weights alone are rounded, not the inputs. Left out on purpose: torchao's 4 bits. Its formats that are
smaller than 8 bits need kernels for NVIDIA cards, and PEFT puts no adapter on them ("only supports int8 weights").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from rlhf_peft.plugin import LoadCode, Options, QuantizerBase, Register, hookimpl, linear_sizes

HOOK_API = 1
SCALE_BYTES = 5
"""A float32 scale and an 8-bit zero point."""


class TorchaoOptions(Options):
    """Which weights share a scale."""

    group_size: int | None = Field(
        None, ge=8, description="Weights of a row that share a scale; null: the whole row."
    )


class Torchao(QuantizerBase):
    """Weights as 8-bit whole numbers by torchao."""

    Options = TorchaoOptions
    bits = 8

    def __init__(self, options: TorchaoOptions) -> None:
        self.group = options.group_size
        self.label = "torchao int8" if self.group is None else f"torchao int8 group {self.group}"

    def load_arguments(self, dtype: torch.dtype, skip: Sequence[str] | None) -> dict[str, Any]:
        """Quantize by torchao's `Int8WeightOnlyConfig`."""
        from torchao.quantization import Int8WeightOnlyConfig, PerGroup
        from transformers import TorchAoConfig

        how = {} if self.group is None else {"granularity": PerGroup(self.group)}
        skipped = None if skip is None else list(skip)
        int8 = Int8WeightOnlyConfig(set_inductor_config=False, **how)  # settings of torch stay as they are
        config = TorchAoConfig(int8, modules_to_not_convert=skipped)
        return {"quantization_config": config}

    def refuses(self, layer: nn.Module, device: torch.device) -> str | None:
        """A row is whole groups. Subclasses of `Linear` are refused: they may compute something else."""
        reason = super().refuses(layer, device)
        inputs = linear_sizes(layer)[0]
        if reason is None and self.group is not None and inputs % self.group:
            return f"{inputs} inputs are not a whole number of groups of {self.group}"
        return reason

    def reads(self, stored: Mapping[str, Any]) -> bool:
        """Checkpoints that torchao stored as 8-bit weights."""
        kind = stored.get("quant_type")
        name = next(iter(kind.values()), {}).get("_type") if isinstance(kind, Mapping) else kind
        return stored.get("quant_method") == "torchao" and name in (
            "Int8WeightOnlyConfig",
            "int8_weight_only",
        )

    def is_quantized(self, layer: nn.Module) -> bool:
        """A linear layer whose weight is torchao's `Int8Tensor`."""
        return type(getattr(layer, "weight", None)).__name__ == "Int8Tensor"

    def dense_weight(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        """[out, in], computed in `dtype`."""
        weight: Any = layer.weight
        dense: Tensor = weight.dequantize(dtype)
        return dense

    def bytes(self, inputs: int, outputs: int) -> int:
        """A byte a weight, and a scale and a zero point for each group."""
        return outputs * (inputs + SCALE_BYTES * (inputs // (self.group or inputs)))

    def load_code(self, skip: Sequence[str]) -> LoadCode:
        """`TorchAoConfig`."""
        how = "" if self.group is None else f"granularity=PerGroup({self.group})"
        names = ("Int8WeightOnlyConfig",) if self.group is None else ("Int8WeightOnlyConfig", "PerGroup")
        skipped = f", modules_to_not_convert={list(skip)!r}" if skip else ""
        return LoadCode(
            imports={"transformers": ("TorchAoConfig",), "torchao.quantization": names},
            config=f"TorchAoConfig(Int8WeightOnlyConfig({how}){skipped})",
        )


@hookimpl
def rlhf_peft_register_quantizers(register: Register) -> None:
    """Offer the quantizer."""
    register("torchao", Torchao)
