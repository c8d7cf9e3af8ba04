import pytest
import torch
from pydantic import ValidationError
from rlhf_peft_torchao import Torchao, TorchaoOptions
from torch import nn

CPU = torch.device("cpu")


def quantizer(**options):
    return Torchao(TorchaoOptions(**options))


@pytest.mark.parametrize("options", [{}, {"group_size": 32}, {"group_size": 48}])
def test_it_keeps_the_rules_of_quantizers(options):
    """Forwards, LoRA gradients and sizes; with groups of 48 some layers of the model stay as they are."""
    pytest.importorskip("torchao")
    from rlhf_peft.testing import check_quantizer

    check_quantizer(Torchao, options)


def test_a_stored_checkpoint_loads_as_it_is(tmp_path):
    pytest.importorskip("torchao")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlhf_peft.engine import BaseSpec, SharedBase

    plain = BaseSpec("builtin:tiny").location
    config = quantizer().load_arguments(torch.float32, None)["quantization_config"]
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path)
    base = SharedBase(BaseSpec(str(tmp_path), readers=(quantizer(),), compute_dtype="float32", device="cpu"))
    assert base.loaded.quantizer.label == "torchao int8"
    with torch.no_grad(), base.role("base", train=False):
        ids = torch.arange(12).view(2, 6)
        assert torch.equal(base.lm(input_ids=ids).logits, model(input_ids=ids).logits)


def test_its_label_says_what_changes_the_weights():
    assert [quantizer().label, quantizer(group_size=64).label] == [
        "torchao int8",
        "torchao int8 group 64",
    ]


def test_what_stays_as_it_is():
    layer = nn.Linear(96, 8, device="meta")
    assert quantizer().refuses(layer, CPU) is None and quantizer(group_size=32).refuses(layer, CPU) is None
    assert "not a whole number of groups of 64" in quantizer(group_size=64).refuses(layer, CPU)

    class Own(nn.Linear):
        pass

    assert "Own" in quantizer().refuses(Own(96, 8, device="meta"), CPU)


def test_sizes_by_hand():
    assert quantizer().bytes(64, 10) == 10 * (64 + 5)
    assert quantizer(group_size=16).bytes(64, 10) == 10 * (64 + 4 * 5)


def test_what_it_reads():
    stored = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}
    assert quantizer().reads(stored)
    assert not quantizer().reads({**stored, "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}})
    assert not quantizer().reads({"quant_method": "bitsandbytes", "load_in_8bit": True})


def test_groups_of_no_size_are_refused():
    with pytest.raises(ValidationError, match="group_size"):
        TorchaoOptions(group_size=0)
