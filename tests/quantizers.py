"""Quantizers as a recipe names them, for tests that load a base without a recipe; and one of the tests' own."""

import torch
from pydantic import Field
from torch import nn

from rlhf_peft.engine.targets import linear_layers
from rlhf_peft.plugin import Options, QuantizerBase, linear_sizes
from rlhf_peft.registry import Registry
from rlhf_peft.registry.bases import readers

REGISTRY = Registry.load(no_plugins=True)


def held_as(name: str, **options) -> dict:
    """What `BaseSpec` is given, so that weights are held by this quantizer."""
    return {"quantizer": REGISTRY.make("quantizers", name, options), "readers": readers(REGISTRY)}


class Rounded(nn.Linear):
    """A linear layer that keeps whole numbers and a scale for each row, in plain torch."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.bias = plain.bias
        self.scale = nn.Parameter(plain.weight.abs().amax(1, keepdim=True) / 127, requires_grad=False)
        self.weight = nn.Parameter((plain.weight / self.scale).round().to(torch.int8), requires_grad=False)

    def dense(self) -> torch.Tensor:
        return self.weight * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.dense(), self.bias)


class RoundedQuantizer(QuantizerBase):
    """Replaces layers after a plain load; wide ones stay as they are."""

    class Options(Options):
        """What stays as it is."""

        most_inputs: int = Field(2**20, gt=0, description="Layers with more inputs stay as they are.")

    label = "rounded"
    bits = 8

    def __init__(self, options=None):
        self.options = options or self.Options()

    def refuses(self, layer, device):
        most, inputs = self.options.most_inputs, linear_sizes(layer)[0]
        return super().refuses(layer, device) or (f"{inputs} inputs are too many" if inputs > most else None)

    def prepare(self, model):
        for name, layer in linear_layers(model).items():
            if self.refuses(layer, layer.weight.device) is None:
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, Rounded(layer))

    def is_quantized(self, layer):
        return isinstance(layer, Rounded)

    def dense_weight(self, layer, dtype):
        return layer.dense().to(dtype)

    def bytes(self, inputs, outputs):
        return inputs * outputs + 4 * outputs
