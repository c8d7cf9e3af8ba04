"""What the engine asks of a quantizer, and what one does unless it says otherwise.

`QuantizerBase` by itself holds every weight as the checkpoint has it; quantizers subclass it and say what is different.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class LoadCode:
    """How other programs load a base as a quantizer holds it; for model cards and for the commands of exports.

    Attributes:
        imports: module to the names that `config` and `after` need.
        config: the Python expression that is given to `from_pretrained` as `quantization_config`.
        after: lines of Python to run when the base is loaded, which they call `base`.
        note: what `after` is for, in a sentence or two; empty where there is nothing to say.
        vllm: arguments with which `vllm serve` quantizes likewise as it loads; empty where it cannot.
        vllm_needs: a shell command that must have been run before; empty: none.
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
    """Holds the linear layers of a base model in few bits; `QuantizerBase` has a default for everything.

    transformers quantizes while it loads (`load_arguments`), or the quantizer does it afterwards (`prepare`); PEFT must
    know the layers that come of it. Making a quantizer reads no weights and imports nothing large: one of each name is
    made, to ask which of them reads a stored checkpoint.

    Attributes:
        label: its name, and each option that changes the weights, in words: `nf4 double`. It stands in messages and
            beside every adapter (`base.json`): an adapter is refused on a base with another label.
        bits: of one weight, without scales; None: weights stay as they are stored.
        weight_only: whether a layer computes x W^T + b, where W is its dense weight. False where it rounds its inputs
            too: such layers keep their own forward.
        trainable: whether gradients go through its layers to what is below them. False: it can only be decoded with.
        devices: kinds of torch devices that it works on, such as `cpu` and `cuda`; None: all.
    """

    label: str
    bits: float | None
    weight_only: bool
    trainable: bool
    devices: tuple[str, ...] | None

    def load_arguments(self, dtype: torch.dtype, skip: Sequence[str] | None) -> dict[str, Any]:
        """What `from_pretrained` is given to quantize a plain checkpoint as it loads, `quantization_config` for one.

        Args:
            dtype: of the forwards.
            skip: regular expressions of the full names of modules that stay as they are, the output embedding among
                them; None: transformers' own choice, which is the output embedding.
        """
        ...

    def refuses(self, layer: nn.Module, device: torch.device) -> str | None:
        """Why a linear layer (on the meta device, without data) stays as it is on such a device; None: it does not."""
        ...

    def reads(self, stored: Mapping[str, Any]) -> bool:
        """Whether a checkpoint has layers of this quantizer, from the `quantization_config` of its config.json."""
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

    def dense_weight(self, layer: nn.Module) -> Tensor:
        """[out, in] floating point: the weight of a layer of this quantizer, dequantized; the layer stays as it is."""
        ...

    def bytes(self, inputs: int, outputs: int) -> int:
        """Bytes that the weight of such a layer takes, its scales among them; for `plan`."""
        ...

    def load_code(self, skip: Sequence[str]) -> LoadCode | None:
        """How others load the same base; `skip` names modules that stay as they are. None: they cannot."""
        ...


class QuantizerBase:
    """A quantizer that quantizes nothing.

    Attributes:
        label: see `Quantizer`, as all others.
    """

    label: str = "none"
    bits: float | None = None
    weight_only: bool = True
    trainable: bool = True
    devices: tuple[str, ...] | None = None

    def load_arguments(self, dtype: torch.dtype, skip: Sequence[str] | None) -> dict[str, Any]:
        """None: the weights are loaded as they are stored."""
        return {}

    def refuses(self, layer: nn.Module, device: torch.device) -> str | None:
        """Only plain linear layers are quantized: a subclass may compute something else."""
        return None if type(layer) is nn.Linear else f"{type(layer).__name__} is no plain linear layer"

    def reads(self, stored: Mapping[str, Any]) -> bool:
        """No checkpoint that is stored quantized."""
        return False

    def prepare(self, model: nn.Module) -> None:
        """Nothing is left to do."""

    def is_quantized(self, layer: nn.Module) -> bool:
        """No layer is."""
        return False

    def dense_weight(self, layer: nn.Module) -> Tensor:
        """Not asked where no layer is quantized.

        Raises:
            NotImplementedError: always; a quantizer with layers of its own says what they hold.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its layers are dequantized")

    def bytes(self, inputs: int, outputs: int) -> int:
        """Not asked where no layer is quantized.

        Raises:
            NotImplementedError: always; a quantizer with layers of its own says how large they are.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how large its layers are")

    def load_code(self, skip: Sequence[str]) -> LoadCode | None:
        """None: plain `from_pretrained` loads the same weights."""
        return None


UNQUANTIZED: Quantizer = QuantizerBase()
"""Holds every weight as it is stored."""
