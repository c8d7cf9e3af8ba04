"""Private names of PEFT's LoRA layers.

PEFT's public `set_adapter()`, `enable_adapters()` and `disable_adapter()` also change `requires_grad` (as of 0.21), and
there is no public way to the tensors of one adapter of one layer. `tests/engine/compat/test_lora.py` names each entry
and fails with a sentence where PEFT renames it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

__all__ = [
    "BaseTunerLayer",
    "LoraLayer",
    "LoraMatrices",
    "adapter_parameters",
    "carries",
    "lone_adapter",
    "matrices",
]


def activate(model: Any, layers: Iterable[Any], adapters: Sequence[str], disabled: bool) -> None:
    """Set which adapters the forwards of these layers go through, and touch nothing else.

    Writes `_active_adapter` and `_disable_adapters`. If PEFT renames them, an assignment does not fail and every role
    computes as the policy: `ActiveAdapter` reads the public properties back when it is made.

    Args:
        model: PEFT's model.
        layers: those that carry adapters.
        adapters: names.
        disabled: forwards go through none of them.
    """
    for layer in layers:
        layer._active_adapter = list(adapters)
        layer._disable_adapters = disabled
    if adapters:
        model.active_adapter = adapters[0]
        model.base_model.active_adapter = list(adapters)


def carries(layer: Any, adapter: str) -> bool:
    """Whether a layer has something of the adapter. Reads `adapter_layer_names`."""
    return any(adapter in getattr(layer, kind) for kind in layer.adapter_layer_names)


def adapter_parameters(layer: Any, adapter: str) -> dict[str, nn.Parameter]:
    """The adapter's parameters in one layer, by their names in PEFT's files, such as `lora_A.weight`.

    Reads `adapter_layer_names`, which names the layer's containers.
    """
    parameters: dict[str, nn.Parameter] = {}
    for name in layer.adapter_layer_names:
        container = getattr(layer, name)
        if adapter in container and isinstance(container, nn.ModuleDict):
            parameters |= {f"{name}.{key}": value for key, value in container[adapter].named_parameters()}
    return parameters


@dataclass(frozen=True, slots=True)
class LoraMatrices:
    """The update scale * up @ down of a layer's weight.

    Attributes:
        down: A [r, in].
        up: B [out, r].
        scale: alpha / r, or alpha / sqrt(r).
    """

    down: Tensor
    up: Tensor
    scale: float


def matrices(layer: Any, adapter: str | None) -> LoraMatrices | None:
    """The matrices of an adapter in a layer; None where it has none. Reads `lora_A`, `lora_B` and `scaling`."""
    if adapter is None or not isinstance(layer, LoraLayer) or adapter not in layer.lora_A:
        return None
    return LoraMatrices(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter])


def lone_adapter(layer: Any) -> str | None:
    """The one active adapter of a layer, if the layer's forward adds nothing but its plain low-rank update.

    That is: no other adapter, none merged or disabled, no variant such as DoRA, no dropout, no bias of its own.
    Reads `merged`, `lora_variant`, `lora_dropout` and `lora_B`.
    """
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    adapter: str = layer.active_adapters[0]
    if adapter not in layer.lora_A or adapter in layer.lora_variant:
        return None
    dropout = layer.lora_dropout[adapter]
    drops = isinstance(dropout, nn.Dropout) and dropout.p > 0 and dropout.training
    return None if drops or layer.lora_B[adapter].bias is not None else adapter
