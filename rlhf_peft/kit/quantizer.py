"""The interface of quantizers, and a base class with defaults.

`QuantizerBase` by itself keeps every weight as the checkpoint has it; quantizers subclass it and override what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class LoadCode:
    """How other programs load a base quantized in the same way; for model cards and the commands of exports.

    Attributes:
        imports: module to the names that `config` and `after` need.
        config: the Python expression that is given to `from_pretrained` as `quantization_config`.
        after: lines of Python to run when the base is loaded, which they call `base`.
        note: what `after` is for, in a sentence or two; may be empty.
        vllm: arguments with which `vllm serve` quantizes in the same way while it loads; empty where it cannot.
        vllm_needs: a shell command that must be run before; empty: none.
    """

    imports: Mapping[str, Sequence[str]]
    config: str
    after: Sequence[str] = ()
    note: str = ""
    vllm: str = ""
    vllm_needs: str = ""


def linear_sizes(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a plain linear layer, which may be on the meta device; GPT-2's is transposed."""
    rows, columns = (int(size) for size in layer.weight.shape)  # type: ignore[union-attr]
    return (rows, columns) if type(layer).__name__ == "Conv1D" else (columns, rows)


@runtime_checkable
class Quantizer(Protocol):
    """Quantizes the linear layers of a base model; `QuantizerBase` has a default for everything.

    transformers quantizes while it loads (`load_arguments`), or the quantizer does it afterwards (`prepare`). PEFT must
    support the resulting layers. Making a quantizer must read no weights and import nothing large: one of each name is
    made, to find out which of them reads a stored checkpoint.

    Attributes:
        label: its name, and each option that changes the weights, in words: `nf4 double`. It is in messages and beside
            every adapter (`base.json`): an adapter is refused on a base with another label.
        bits: of one weight, without scales; None: weights stay as they are stored.
        weight_only: whether a layer computes x W^T + b, where W is its dense weight. False where it rounds its inputs
            too: such layers keep their own forward.
        trainable: whether gradients pass through its layers. False: the model can only be used for decoding.
        devices: kinds of torch devices that it works on, such as `cpu` and `cuda`; None: all.
    """

    label: str
    bits: float | None
    weight_only: bool
    trainable: bool
    devices: tuple[str, ...] | None

    def load_arguments(self, dtype: torch.dtype, skip: Sequence[str] | None) -> dict[str, Any]:
        """Arguments of `from_pretrained`, such as `quantization_config`, that quantize a checkpoint while it loads.

        Args:
            dtype: of the forwards.
            skip: regular expressions of the full names of modules that stay as they are, the output embedding among
                them; None: transformers' own choice, which is the output embedding.
        """
        ...

    def refuses(self, layer: nn.Module, device: torch.device) -> str | None:
        """The reason why a linear layer is not quantized on a device, or None where it is quantized.

        Args:
            layer: on the meta device, without data.
            device: that the model is loaded on.
        """
        ...

    def reads(self, stored: Mapping[str, Any]) -> bool:
        """Whether a checkpoint is stored in the form of this quantizer.

        Args:
            stored: the `quantization_config` of the checkpoint's config.json.
        """
        ...

    def prepare(self, model: nn.Module) -> None:
        """Called once when the weights are loaded, before adapters are put on; it may replace layers of the model.

        Raises:
            ValueError: the weights are not what the configuration says.
        """
        ...

    def is_quantized(self, layer: nn.Module) -> bool:
        """Whether this module is a layer of this quantizer; it may also be one that PEFT has wrapped."""
        ...

    def dense_weight(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        """The dequantized weight of a layer of this quantizer, [out, in]; the layer is unchanged.

        It is a tensor of its own: an adapter may be added to it.

        Args:
            layer: of this quantizer.
            dtype: of the result. The weight is computed in this precision, and not rounded to a smaller one before:
                small updates that are added to a weight on the grid of bfloat16 are lost.
        """
        ...

    def bytes(self, inputs: int, outputs: int) -> int:
        """Bytes of the quantized weight of a layer with these sizes, its scales included; for `plan`."""
        ...

    def load_code(self, skip: Sequence[str]) -> LoadCode | None:
        """How other programs load the same base, or None where they cannot.

        Args:
            skip: names of modules that are not quantized.
        """
        ...


class QuantizerBase:
    """A quantizer that quantizes nothing.

    Attributes:
        label: see `Quantizer`, which describes all attributes.
    """

    label: str = "none"
    bits: float | None = None
    weight_only: bool = True
    trainable: bool = True
    devices: tuple[str, ...] | None = None

    def load_arguments(self, dtype: torch.dtype, skip: Sequence[str] | None) -> dict[str, Any]:
        """No arguments: the weights are loaded as they are stored."""
        return {}

    def refuses(self, layer: nn.Module, device: torch.device) -> str | None:
        """A reason for every layer but plain linear ones, because a subclass may compute something else."""
        return None if type(layer) is nn.Linear else f"{type(layer).__name__} is no plain linear layer"

    def reads(self, stored: Mapping[str, Any]) -> bool:
        """False: it reads no checkpoint that is stored quantized."""
        return False

    def prepare(self, model: nn.Module) -> None:
        """Do nothing."""

    def is_quantized(self, layer: nn.Module) -> bool:
        """False: no layer is quantized."""
        return False

    def dense_weight(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        """Never called where no layer is quantized.

        Raises:
            NotImplementedError: always; a quantizer with quantized layers overrides it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its layers are dequantized")

    def bytes(self, inputs: int, outputs: int) -> int:
        """Never called where no layer is quantized.

        Raises:
            NotImplementedError: always; a quantizer with quantized layers overrides it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how large its layers are")

    def load_code(self, skip: Sequence[str]) -> LoadCode | None:
        """None: plain `from_pretrained` loads the same weights."""
        return None


UNQUANTIZED: Quantizer = QuantizerBase()
"""A quantizer that keeps every weight as it is stored."""
