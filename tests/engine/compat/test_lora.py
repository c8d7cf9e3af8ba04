"""Each private name of PEFT's layers that the package uses, one by one."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from rlhf_peft.engine.compat import lora


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 3)

    def forward(self, x):
        return self.first(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    peft = get_peft_model(Model(), LoraConfig(r=2, target_modules=["first"], init_lora_weights=False), "one")
    peft.add_adapter("two", LoraConfig(r=2, target_modules=["first"], init_lora_weights=False))
    return peft


def layer_of(model):
    return next(module for module in model.modules() if isinstance(module, lora.LoraLayer))


@pytest.mark.parametrize(
    "name", ["lora_A", "lora_B", "scaling", "lora_dropout", "lora_variant", "merged", "adapter_layer_names"]
)
def test_a_layer_has_what_is_read_of_it(model, name):
    assert hasattr(layer_of(model), name), f"PEFT renamed LoraLayer.{name}: see engine/compat/lora.py"


@pytest.mark.parametrize("name", ["_active_adapter", "_disable_adapters"])
def test_a_layer_has_what_is_set(model, name):
    assert name in vars(layer_of(model)), f"PEFT renamed LoraLayer.{name}: see compat.lora.activate"


def test_what_is_set_is_what_the_forward_goes_through(model):
    layer, x = layer_of(model), torch.randn(5, 4)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    outputs = {}
    for adapters, disabled in ((("one",), False), (("two",), False), (("two",), True)):
        lora.activate(model, [layer], adapters, disabled)
        assert tuple(layer.active_adapters) == adapters and layer.disable_adapters is disabled
        outputs[adapters, disabled] = model(x)
    assert len({float(out.sum()) for out in outputs.values()}) == 3
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_the_matrices_are_the_update(model):
    layer, x = layer_of(model), torch.randn(5, 4)
    lora.activate(model, [layer], ("one",), False)
    matrices = lora.matrices(layer, lora.lone_adapter(layer))
    update = matrices.scale * x @ matrices.down.t() @ matrices.up.t()
    assert torch.allclose(layer(x), layer.get_base_layer()(x) + update, atol=1e-6)
    assert lora.matrices(layer, None) is None and lora.matrices(layer, "three") is None
    assert lora.carries(layer, "two") and not lora.carries(layer, "three")
    assert list(lora.adapter_parameters(layer, "two")) == ["lora_A.weight", "lora_B.weight"]
