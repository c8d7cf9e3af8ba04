"""Which layers of a base can carry an adapter, and why the others cannot: what `all-linear` means.

Three kinds of layers stay without one. PEFT refuses some by their name (the output projection of Mamba's kind, whose
weight fused kernels read; projections that have the names of what is now a stack of experts). Some are never called:
their model reads the weight itself, or no text passes through them; an adapter there would be trained by nothing and
merged into something. And stacked experts are parameters, no layers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..kit.quantizer import UNQUANTIZED, Quantizer
from .compat import adapter_refusal
from .module_state import mode

ALL_LINEAR = "all-linear"
NEVER_CALLED = "the forward of this layer is never called for text"


@dataclass(frozen=True, slots=True)
class Targets:
    """The linear layers of a base, its output embedding left out.

    Attributes:
        able: full names of those that can carry an adapter.
        unable: full name of each other one to the reason.
        stacked: kinds of parameters that hold several experts' weights.
    """

    able: list[str]
    unable: Mapping[str, str] = field(default_factory=dict)
    stacked: Collection[str] = ()

    def chosen(self, config: LoraConfig) -> tuple[list[str], list[str]]:
        """The layers that a configuration names: those that can carry an adapter, and those that cannot."""
        if config.target_modules == ALL_LINEAR:
            return list(self.able), list(self.unable)
        named = [name for name in (*self.able, *self.unable) if check_target_module_exists(config, name)]
        return [x for x in named if x not in self.unable], [x for x in named if x in self.unable]

    def left_out(self, config: LoraConfig) -> str | None:
        """Which layers that a configuration names stay without an adapter, in a sentence; None: none does."""
        able, unable = self.chosen(config)
        shown = set(short_kinds(able))
        parts = []
        for reason in sorted({self.unable[name] for name in unable}):
            names = [name for name in unable if self.unable[name] == reason]
            short = {x if (x := name.rsplit(".", 1)[-1]) not in shown else kind(name) for name in names}
            parts.append(f"{', '.join(sorted(short))} ({reason})")
        if self.stacked and config.target_modules == ALL_LINEAR:
            parts.append(
                f"{', '.join(self.stacked)} (weights of several experts in one parameter, not layers)"
            )
        if not parts:
            return None
        what = config.target_modules if isinstance(config.target_modules, str) else "the list"
        return (
            f"lora.target_modules: {what} puts adapters on {len(able)} layers ({', '.join(sorted(shown))}). These "
            f"stay without one: {'; '.join(parts)}."
        )


def kind(name: str) -> str:
    """A module's full name with its numbers left open: `layers.0.mlp` and `layers.7.mlp` are of one kind."""
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)


def short_kinds(names: Iterable[str]) -> list[str]:
    """The last parts of full names, each once."""
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def is_linear(layer: nn.Module, quantizer: Quantizer = UNQUANTIZED) -> bool:
    """Whether a module is a linear layer, plain or quantized."""
    return isinstance(layer, nn.Linear | Conv1D) or quantizer.is_quantized(layer)


def linear_layers(model: Any, quantizer: Quantizer = UNQUANTIZED) -> dict[str, nn.Module]:
    """Every linear layer but the output embedding, by its full name; layers of `quantizer` are among them."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if module is not head and is_linear(module, quantizer)
    }


def targets_of(model: Any, ids: Tensor | None = None, quantizer: Quantizer = UNQUANTIZED) -> Targets:
    """Look at a base before adapters are on it.

    Args:
        model: the causal language model.
        ids: [B, T] token ids of a small forward that shows which layers are called; None: none is computed, and
            layers that are never called are not found.
        quantizer: of the base.
    """
    layers = linear_layers(model, quantizer)
    refused = {short: adapter_refusal(model, short) for short in short_kinds(layers)}
    unable = {name: why for name in layers if (why := refused[name.rsplit(".", 1)[-1]]) is not None}
    if ids is not None:
        called = _called(model, layers, ids, train=True) & _called(model, layers, ids, train=False)
        unable |= {name: NEVER_CALLED for name in layers if name not in unable and kind(name) not in called}
    return Targets([name for name in layers if name not in unable], unable, _stacked(model))


def _called(model: Any, layers: Mapping[str, nn.Module], ids: Tensor, *, train: bool) -> set[str]:
    """Kinds of the layers whose forward is called in a mode."""
    seen: set[str] = set()
    with ExitStack() as stack:
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(lambda *_, name=name: seen.add(kind(name)))
            stack.callback(hook.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(mode(model, train))
        model(input_ids=ids, use_cache=False)
    return seen


def stacked_experts(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that hold the weights of several experts, by their full names."""
    parameters = {}
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch."):
            continue  # a convolution's weight has three dimensions too
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and min(parameter.shape) > 1:
                parameters[f"{path}.{name}"] = parameter
    return parameters


def _stacked(model: nn.Module) -> list[str]:
    """Kinds of stacked weights, by the last two parts of their names."""
    return sorted({".".join(name.split(".")[-2:]) for name in stacked_experts(model)})
