"""Every rule of quantizers is broken once on purpose, and the check says which."""

import pytest
import torch
from torch import nn

from rlhf_peft.testing import ConformanceError, check_quantizer
from rlhf_peft.testing.quantizers import stored_bytes

from ..quantizers import Rounded, RoundedQuantizer


class Repacked(Rounded):
    """After a forward in eval mode no gradient comes back through it."""

    packed = False

    def forward(self, x):
        self.packed = self.packed or not (self.training or torch.is_grad_enabled())
        return super().forward(x.detach() if self.packed else x)


def of(layer):
    """A quantizer that makes layers of this type."""

    def prepare(self, model):
        RoundedQuantizer.prepare(self, model)
        for module in model.modules():
            if type(module) is Rounded:
                module.__class__ = layer

    return {"prepare": prepare, "weight_only": False}


def spoiling(self, layer, dtype):
    dense = layer.dense()
    layer.scale.mul_(0.5)
    return dense.to(dtype)


def dense_as(change):
    """A quantizer whose dense weight is another one: `change` of the true one and the dtype."""
    return {"dense_weight": lambda self, layer, dtype: change(layer.dense(), dtype)}


def own(layer, dtype):
    """The dense weight once, and from then on the same tensor, which the layer computes with."""
    if dtype != torch.float32:
        return layer.dense().to(dtype)
    if "kept" not in layer.__dict__:
        layer.kept = layer.dense()
        layer.dense = lambda: layer.kept
    return layer.kept


CASES = {
    "no label": ({"label": " "}, "label is its name and its options in words"),
    "too many bits": ({"bits": 32}, "bits is a number up to 16, or None, found 32"),
    "flags": ({"trainable": "yes"}, "trainable is true or false, found 'yes'"),
    "devices": ({"devices": "cpu"}, "devices is a tuple of words such as 'cpu'"),
    "code": ({"load_code": lambda self, skip: "x"}, "load_code gives LoadCode or None, found str"),
    "a refusal that is not kept": (
        {
            "refuses": lambda self, layer, device: (
                "no" if layer.weight.shape[0] > layer.weight.shape[1] else None
            )
        }
        | {"prepare": lambda self, model: RoundedQuantizer().prepare(model)},
        r"refuses\(\) says 'no' of .*gate_proj, but it is quantized",
    ),
    "plain layers": (
        {"is_quantized": lambda self, layer: isinstance(layer, nn.Linear)},
        "is_quantized is true of a plain linear layer",
    ),
    "shape": (
        dense_as(lambda weight, dtype: weight.T[:5]),
        r"gives a float32 tensor .*\[out, in\]",
    ),
    "its own dtype": (
        dense_as(lambda weight, dtype: weight.half()),
        "gives a float32 tensor",
    ),
    "rounded": (
        dense_as(lambda weight, dtype: weight.float()),
        r"bfloat16\) gives torch.float32",
    ),
    "another weight": (
        dense_as(lambda weight, dtype: 3 * weight.to(dtype)),
        "200% away from the weight",
    ),
    "a changed layer": ({"dense_weight": spoiling, "weight_only": False}, "dense_weight changed the layer"),
    "the layer's own": (
        {"dense_weight": lambda self, layer, dtype: own(layer, dtype), "weight_only": False},
        "a merge would change the layer",
    ),
    "bytes": ({"bytes": lambda self, inputs, outputs: inputs * outputs // 2}, r"bytes\(\) says \d+ for 28"),
    "outputs": (
        dense_as(lambda weight, dtype: weight.abs().to(dtype)),
        "away from the weight|the logits",
    ),
    "gradients": (of(Repacked), "the gradients of an adapter differ"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_quantizer_is_told(case):
    changes, message = CASES[case]
    with pytest.raises(ConformanceError, match=message):
        check_quantizer(type("Bad", (RoundedQuantizer,), changes))


@pytest.mark.parametrize("options", [{}, {"most_inputs": 128}])
def test_a_good_one_passes(options):
    check_quantizer(RoundedQuantizer, options)


def test_all_that_a_layer_holds_is_counted_once():
    plain = nn.Linear(8, 4)
    assert stored_bytes(plain) == 4 * 8 * 4
    rounded = Rounded(plain)
    assert stored_bytes(rounded) == 8 * 4 + 4 * 4
    rounded.same = [rounded.weight, {"again": rounded.scale}]
    assert stored_bytes(rounded) == 8 * 4 + 4 * 4
