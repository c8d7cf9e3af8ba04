"""What cannot be loaded is refused in one paragraph that names the key and the remedy."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from rlhf_peft.engine import BaseSpec, LoraSpec, SharedBase
from rlhf_peft.errors import ModelError

from ..quantizers import held_as
from .support import edit_json, load, save_model, tokenizer


@pytest.fixture
def spoiled(folder_of, tmp_path):
    """A copy of a model's folder, to be spoiled."""
    return shutil.copytree(folder_of("llama"), tmp_path / "model")


def refused(folder, *parts, **options):
    with pytest.raises(ModelError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_paths_that_lead_nowhere(tmp_path):
    refused(tmp_path / "nowhere", "model.path", "no such folder", "a folder with config.json and weights")
    refused(tmp_path, "model.path", "config.json")
    refused("nobody/no-such-model", "model.path", "nobody/no-such-model", "a hub id that can be reached")
    refused("builtin:huge", "model.path", "builtin:huge", "builtin:tiny")


def test_a_tokenizer_is_needed(folder_of, tmp_path):
    refused(save_model(tmp_path / "bare", "llama", with_tokenizer=False), "model.path", "tokenizer")


def test_a_tokenizer_needs_an_end(spoiled):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (spoiled / name).unlink(missing_ok=True)
    tokenizer(unk_token="<unk>").save_pretrained(spoiled)
    refused(spoiled, "model.path", "no EOS token", "eos_token")


def test_a_tokenizer_without_padding_pads_with_the_end(spoiled):
    tokenizer(unk_token="<unk>", eos_token="</s>").save_pretrained(spoiled)
    base = load(spoiled)
    assert base.tokenizer.pad_token_id == base.tokenizer.eos_token_id == 2


def test_tokens_beyond_the_embedding_do_not_stand_in_the_way(spoiled):
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "w301"}
    tokenizer(extra=2, **special).save_pretrained(spoiled)
    base = load(spoiled)
    assert base.vocab_size == 300 < len(base.tokenizer)
    assert base.tokenizer.pad_token_id == base.tokenizer.eos_token_id == 2


def test_an_end_beyond_the_embedding(spoiled):
    tokenizer(extra=2, eos_token="w301", unk_token="<unk>").save_pretrained(spoiled)
    refused(spoiled, "model.path", "EOS", "'w301' = 301", "300 rows", "resize")


def test_all_ends_are_known(spoiled):
    edit_json(spoiled / "generation_config.json", eos_token_id=[2, 7])
    assert load(spoiled).eos_ids == {2, 7}


def test_rows_longer_than_the_model_allows(folder_of):
    refused(folder_of("llama"), "model.max_length", "65", "64 positions", max_length=65)
    assert load(folder_of("llama"), max_length=32).max_length == 32
    assert load(folder_of("llama")).max_length == 64


@pytest.mark.parametrize("device", ["mps", "meta", "cuda:99", "toaster"])
def test_devices_that_are_not_here(folder_of, device):
    refused(folder_of("llama"), "device", device, "auto", device=device)


def test_devices_without_kernels(folder_of, monkeypatch):
    monkeypatch.setattr("rlhf_peft.builtin.quantizers.four_bits.Nf4.devices", ("cuda",))
    refused(folder_of("llama"), "model.quantization", "nf4", "no kernels for cpu", "model.quantization=none")


def test_models_that_are_quantized_already(spoiled):
    edit_json(
        spoiled / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    )
    refused(spoiled, "model.path", "quantized already", "model.quantization=none")


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq", "compressed-tensors", "nobodys"])
def test_models_that_are_stored_in_a_form_that_no_quantizer_reads(spoiled, method):
    """They are refused by name before a weight is read, whether the packages that load them are installed or not."""
    edit_json(spoiled / "config.json", quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(
        ModelError, match=f"quantized already .with {method}.; name its unquantized original\\."
    ):
        load(spoiled)
    (spoiled / "model.safetensors").write_bytes(b"never read")
    refused(
        spoiled,
        f"stored quantized with {method}, which no quantizer here reads",
        "cannot be merged",
        "unquantized original",
        "install a plugin",
        quantization="none",
    )


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_models_that_transformers_dequantizes_as_it_loads(spoiled, method):
    edit_json(spoiled / "config.json", quantization_config={"quant_method": method})
    assert load(spoiled, "none").loaded.quantizer.bits is None


def test_models_that_say_of_plain_weights_that_they_are_quantized(spoiled):
    edit_json(
        spoiled / "config.json",
        quantization_config={
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
        },
    )
    refused(spoiled, "model.path", "stored in 4 bits, but the weight of", quantization="none")


def test_models_of_which_nothing_can_be_quantized(folder_of):
    refused(folder_of("falcon"), "model.quantization", "FalconForCausalLM", "model.quantization=none")


def test_layers_that_stay_unquantized_are_named(folder_of, caplog):
    with caplog.at_level(logging.WARNING, logger="rlhf_peft"):
        base = load(folder_of("llama"))
    assert [r.getMessage() for r in caplog.records if r.name == "rlhf_peft"] == [
        "2 layers stay unquantized (down_proj): 172 inputs are not a whole number of blocks of 64"
    ]
    kinds = {
        n.rsplit(".", 1)[-1]
        for n, m in base.lm.named_modules()
        if type(m).__module__.startswith("bitsandbytes")
    }
    assert type(base.loaded.trunk.layers[0].mlp.down_proj.base_layer) is torch.nn.Linear
    assert kinds == {"base_layer"} and type(base.lm.lm_head) is torch.nn.Linear


def test_experts_that_stay_unquantized_are_told(folder_of, caplog):
    load(folder_of("mixtral"))
    assert "4 stacks of expert weights stay unquantized" in caplog.text


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        (("no_such_proj",), ["no_such_proj is not in this base", "down_proj", "q_proj"]),
        (("q_proj", "typo_proj"), ["typo_proj is not in this base"]),
        ("no.*such", ["'no.*such' is not found", "all-linear"]),
        (("lm_head",), ["lm_head is the output embedding", "all-linear"]),
        (("q_proj", "lm_head"), ["lm_head is the output embedding"]),
        (("embed_tokens",), ["embed_tokens is of type Embedding", "all-linear"]),
    ],
    ids=str,
)
def test_adapters_on_layers_that_cannot_have_them(folder_of, llama, targets, parts):
    lora = LoraSpec(r=4, target_modules=targets)
    refused(folder_of("llama"), "lora.target_modules", *parts, lora=lora)
    with pytest.raises(ModelError, match=r"lora\.target_modules"):
        llama.roles.add("reward-0", lora=lora)
    assert llama.roles.names == ["policy"] and list(llama.model.peft_config) == ["policy"]


def test_weights_that_are_damaged_or_not_all_there(spoiled):
    path = spoiled / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not mapped from the file
    save_file({k: v for k, v in weights.items() if "lm_head" not in k}, path, metadata={"format": "pt"})
    refused(spoiled, "model.path", "lack 1 tensors", "lm_head.weight")
    path.write_bytes(path.read_bytes()[:1000])
    refused(spoiled, "model.path", str(spoiled))
    path.unlink()
    refused(spoiled, "model.path", "safetensors")
    torch.save(weights, spoiled / "pytorch_model.bin")
    refused(spoiled, "model.path", "safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model.bin")}
    (spoiled / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(spoiled, "names pytorch_model.bin", "pickled weights are never read")


def test_configurations_that_are_damaged_or_of_another_kind(spoiled):
    edit_json(spoiled / "config.json", hidden_size=128)
    refused(spoiled, "model.path", "other shapes", "safetensors")
    (spoiled / "config.json").write_text("{")
    refused(spoiled, "model.path")
    (spoiled / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    refused(spoiled, "model.path", "no-such-model")
    (spoiled / "config.json").write_text(json.dumps({"model_type": "vit"}))
    refused(spoiled, "model.path")


def test_code_from_a_model_folder_is_not_run(spoiled):
    edit_json(
        spoiled / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.O"},
    )
    (spoiled / "own.py").write_text("raise SystemExit('run')")
    refused(spoiled, "model.path", "code of its own", "--trust-remote-code")


def test_attention_that_the_model_does_not_have(folder_of):
    refused(folder_of("llama"), "model.attn_implementation", "magic", "auto", attn_implementation="magic")


def test_logits_that_are_more_than_a_head(folder_of, monkeypatch):
    """A model that scales its logits in a way of its own would get wrong log-probabilities."""
    from transformers import LlamaForCausalLM

    whole = LlamaForCausalLM.forward

    def scaled(self, *args, **kwargs):
        out = whole(self, *args, **kwargs)
        out.logits = out.logits * 1.01
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    refused(folder_of("llama"), "model.path", "LlamaForCausalLM", "log-probabilities would be wrong")


def test_in_half_precision_log_probabilities_are_compared(monkeypatch):
    """Logits that are off by 0.2 are within 2 % of the largest; their log-probabilities are off by as much."""
    from transformers import LlamaForCausalLM

    whole = LlamaForCausalLM.forward

    def shifted(self, *args, **kwargs):
        out = whole(self, *args, **kwargs)
        assert float(out.logits.abs().max()) > 12
        out.logits = out.logits + 0.2 * (torch.arange(out.logits.shape[-1]) % 2 * 2 - 1)
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", shifted)
    refused("builtin:tiny", "model.path", "log-probabilities would be wrong", compute_dtype="bfloat16")


def test_a_model_that_overflows_in_float16(folder_of, monkeypatch):
    from transformers import LlamaForCausalLM

    whole = LlamaForCausalLM.forward

    def large(self, *args, **kwargs):
        out = whole(self, *args, **kwargs)
        out.logits = out.logits * 1e6
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", large)
    refused(folder_of("llama"), "model.compute_dtype", "65,504", "float32", compute_dtype="float16")


def test_loading_shows_no_progress_bars(folder_of, capsys):
    shown = transformers_logging.is_progress_bar_enabled()
    load(folder_of("llama"))
    captured = capsys.readouterr()
    assert "Loading weights" not in captured.err + captured.out
    assert transformers_logging.is_progress_bar_enabled() is shown


def test_the_shipped_model_loads():
    base = SharedBase(BaseSpec(path="builtin:tiny", **held_as("nf4")), LoraSpec(r=4))
    assert base.tokenizer.eos_token_id in base.eos_ids
    assert all("Linear4bit" in type(layer).__name__ for layer in base.roles.active.layers)
    config = base.model.peft_config["policy"]
    assert config.base_model_name_or_path == "builtin:tiny"
