"""`nf4`, `fp4` and `int8`."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from rlhf_peft.engine import BaseSpec, LoraSpec, SharedBase

from ...quantizers import REGISTRY, held_as

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
IDS = torch.arange(12).view(2, 6)


def quantizer(name, **options):
    return REGISTRY.make("quantizers", name, options)


def logits(base):
    with torch.no_grad(), base.role("base", train=False):
        return base.lm(input_ids=IDS).logits


def test_labels_are_those_that_stand_beside_adapters():
    labels = {name: quantizer(name).label for name in ("nf4", "fp4", "int8", "none")}
    assert labels == {"nf4": "nf4 double", "fp4": "fp4 double", "int8": "int8", "none": "none"}
    assert quantizer("nf4", double_quantization=False).label == "nf4"


def test_which_layers_are_taken():
    narrow = nn.Linear(100, 8, device="meta")
    with torch.device("meta"):
        transposed = Conv1D(8, 100)
    for layer in (narrow, transposed):
        assert "100 inputs are not a whole number of blocks of 64" in quantizer("nf4").refuses(layer, CPU)
        assert quantizer("nf4").refuses(layer, CUDA) is None
        assert quantizer("int8").refuses(layer, CPU) is None

    class Own(nn.Linear):
        pass

    own = Own(64, 8, device="meta")
    assert all("Own" in quantizer(name).refuses(own, CUDA) for name in ("nf4", "fp4", "int8"))


def test_each_reads_its_own_checkpoints_and_no_others():
    four = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    stored = {
        "nf4": {**four, "bnb_4bit_quant_type": "nf4"},
        "fp4": {**four, "bnb_4bit_quant_type": "fp4"},
        "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "none": {"quant_method": "gptq", "bits": 4},
    }
    for kind, config in stored.items():
        reading = [name for name in ("nf4", "fp4", "int8", "none") if quantizer(name).reads(config)]
        assert reading == ([] if kind == "none" else [kind])


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8"])
def test_a_stored_checkpoint_loads_as_it_is(tmp_path, name):
    """It is held by the quantizer that reads it and computes the same; `none` stands beside its adapters."""
    plain = BaseSpec("builtin:tiny").location
    config = quantizer(name).load_arguments(torch.float32, None)["quantization_config"]
    model = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path)
    spec = BaseSpec(str(tmp_path), **held_as("none"), compute_dtype="float32", device="cpu")
    base = SharedBase(spec, LoraSpec(r=4))
    fresh = SharedBase(
        BaseSpec("builtin:tiny", **held_as(name), compute_dtype="float32", device="cpu"), LoraSpec(r=4)
    )
    assert type(base.loaded.quantizer) is type(fresh.loaded.quantizer)
    assert base.fingerprint["quantization"] == "none"
    assert torch.equal(logits(base), logits(fresh))


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8"])
def test_what_a_model_card_says_loads_the_same_base(name):
    code = quantizer(name).load_code([])
    names = {}
    for module, imported in code.imports.items():
        exec(f"from {module} import {', '.join(imported)}", names)
    names["base"] = AutoModelForCausalLM.from_pretrained(
        BaseSpec("builtin:tiny").location,
        quantization_config=eval(code.config, names),
        dtype=torch.float32,
        device_map="cpu",
    )
    exec("\n".join(code.after), names)
    base = SharedBase(
        BaseSpec("builtin:tiny", **held_as(name), compute_dtype="float32", device="cpu"), LoraSpec(r=4)
    )
    with torch.no_grad():
        assert torch.equal(names["base"].eval()(input_ids=IDS).logits, logits(base))
    assert "['score']" in quantizer(name).load_code(["score"]).config
