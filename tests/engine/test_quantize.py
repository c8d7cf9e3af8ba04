"""The engine asks the quantizer, whatever its layers are called."""

import importlib

import pytest
import torch

from rlhf_peft.engine import POLICY, BaseSpec, LoraSpec, SharedBase
from rlhf_peft.engine.fast.dense_weights import dense_bytes, dense_weights
from rlhf_peft.engine.quantize import quantization_error
from rlhf_peft.errors import ModelError

from ..quantizers import Rounded, RoundedQuantizer, held_as
from .support import stir, tokens


def base_of(quantizer, path="builtin:tiny", **options):
    spec = BaseSpec(str(path), quantizer=quantizer, compute_dtype="float32", device="cpu")
    return SharedBase(spec, LoraSpec(r=4), **options)


def logits(base, ids):
    with torch.no_grad(), base.role(POLICY, train=False):
        return base.lm(input_ids=ids).logits


def test_layers_of_an_unknown_type_carry_adapters_are_merged_and_compared(folder_of):
    base = base_of(RoundedQuantizer(), folder_of("llama"))
    stir(base, POLICY)
    layers = [module for module in base.lm.modules() if isinstance(module, Rounded)]
    assert len(layers) == 14 and len(base.roles.active.layers) == 14
    ids = tokens(3, 12)
    with base.decoding.as_role(POLICY, merge=True) as model:
        assert not any(isinstance(module, Rounded) for module in model.lm.modules())
        assert torch.allclose(model.lm(input_ids=ids).logits, logits(base, ids), atol=1e-5)
    assert dense_bytes(base.lm, torch.float32, base.loaded.quantizer) == 4 * sum(
        layer.weight.numel() for layer in layers
    )
    assert len(dict(dense_weights(base.lm, None, base.loaded.quantizer))) == 14
    assert base.fingerprint["quantization"] == "rounded"


@pytest.mark.parametrize("weight_only", [True, False])
def test_only_layers_that_round_no_inputs_are_computed_in_one_step(folder_of, weight_only):
    quantizer = RoundedQuantizer()
    quantizer.weight_only = weight_only
    base = base_of(quantizer, folder_of("llama"))
    fused = ["forward" in layer.__dict__ for layer in base.roles.active.layers]
    assert fused == [weight_only] * 14


def test_a_quantizer_without_gradients_decodes_and_does_not_train(folder_of):
    quantizer = RoundedQuantizer()
    quantizer.trainable = False
    base = base_of(quantizer, folder_of("llama"))
    assert logits(base, tokens(1, 4)).isfinite().all()
    for enter in (lambda: base.training([POLICY]), lambda: base.lend(POLICY)):
        with pytest.raises(ModelError, match=r"no gradients go through the layers of rounded.*nf4"), enter():
            pass


def test_layers_that_stay_as_they_are_are_named_with_the_reason(folder_of, caplog):
    quantizer = RoundedQuantizer(RoundedQuantizer.Options(most_inputs=64))
    base_of(quantizer, folder_of("llama"))
    assert "2 layers stay unquantized (down_proj): 172 inputs are too many" in caplog.text


def test_nothing_that_can_be_quantized_is_an_error(folder_of):
    quantizer = RoundedQuantizer(RoundedQuantizer.Options(most_inputs=8))
    with pytest.raises(ModelError, match=r"no layer of .* can be held as rounded on this device"):
        base_of(quantizer, folder_of("llama"))


def test_a_package_that_is_not_there_is_named(folder_of):
    class Needy(RoundedQuantizer):
        def load_arguments(self, dtype, skip):
            importlib.import_module("a_package_that_is_not_there")

    with pytest.raises(ModelError, match=r"model.quantization: rounded .*a_package_that_is_not_there.*none"):
        base_of(Needy(), folder_of("llama"))


def test_what_the_quantizer_finds_wrong_is_said_with_the_path(folder_of):
    class Strict(RoundedQuantizer):
        def prepare(self, model):
            raise ValueError("the scales of layer 3 are missing")

    with pytest.raises(ModelError, match=r"model.path: .*scales of layer 3"):
        base_of(Strict(), folder_of("llama"))


def test_the_error_of_a_quantized_layer():
    errors = [
        quantization_error(BaseSpec("builtin:tiny", **held_as(name), compute_dtype="float32", device="cpu"))
        for name in ("int8", "nf4", "fp4")
    ]
    assert 0 < errors[0] < 0.03 < errors[1] < errors[2] < 0.2
