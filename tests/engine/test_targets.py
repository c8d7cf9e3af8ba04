"""`all-linear` means each layer that can carry an adapter, and a sentence about those that cannot."""

import inspect

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from rlhf_peft.engine import POLICY, LoraSpec
from rlhf_peft.engine.base_spec import quiet
from rlhf_peft.engine.targets import targets_of
from rlhf_peft.errors import ModelError
from rlhf_peft.planning.shape import of_model

from ..quantizers import held_as
from .support import COMMON, config, load, stir, tokenizer, tokens


def short(names):
    return {name.rsplit(".", 1)[-1] for name in names}


def told(caplog):
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("lora.target_modules")]


def _calls_dt_proj() -> bool:
    """Whether this transformers calls Jamba's `dt_proj`, or takes its weight alone (5.13 and later)."""
    from transformers.models.jamba import modeling_jamba

    lines = inspect.getsource(modeling_jamba).splitlines()
    return not any("self.dt_proj.weight @" in line and not line.strip().startswith("#") for line in lines)


uncalled = pytest.mark.skipif(_calls_dt_proj(), reason="this transformers calls Jamba's dt_proj")


@pytest.mark.parametrize(
    ("name", "without", "reason"),
    [
        ("mamba", {"out_proj"}, "fused kernels"),
        ("mamba2", {"out_proj"}, "fused kernels"),
        ("falcon_h1", {"out_proj"}, "fused kernels"),
        ("nemotron_h", {"out_proj"}, "fused kernels"),
        pytest.param("jamba", {"dt_proj"}, "never called", marks=uncalled),
        ("qwen3_next", {"gate_proj", "up_proj", "down_proj"}, "stacked experts"),
        ("deepseek_v3", {"gate_proj", "up_proj", "down_proj"}, "stacked experts"),
    ],
)
def test_layers_that_cannot_carry_an_adapter_are_left_out_and_named(folder_of, caplog, name, without, reason):
    base = load(folder_of(name), "none")
    assert without <= short(base.roles.targets.unable) and not without & short(base.roles.targets.able)
    assert set(base.model.peft_config[POLICY].target_modules) == set(base.roles.targets.able)
    (sentence,) = told(caplog)
    assert "all-linear" in sentence and reason in sentence
    assert all(name in sentence.split("stay without one")[1] for name in without)


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3_moe", "lfm2_moe"])
def test_stacked_experts_are_named(folder_of, caplog, name):
    load(folder_of(name), "none")
    (sentence,) = told(caplog)
    assert "experts.gate_up_proj" in sentence and "several experts" in sentence
    caplog.clear()
    load(folder_of(name), "none", lora=LoraSpec(r=4, target_modules=("q_proj",)))
    assert not told(caplog)


def test_nothing_is_said_where_nothing_is_left_out(folder_of, caplog):
    load(folder_of("llama"), "none")
    assert not told(caplog)


@pytest.mark.parametrize(
    ("name", "targets", "parts"),
    [
        pytest.param(
            "jamba",
            ("q_proj", "dt_proj"),
            ["dt_proj cannot carry an adapter", "never called"],
            marks=uncalled,
        ),
        ("mamba", ("out_proj",), ["out_proj cannot carry an adapter", "fused kernels", "in_proj"]),
        ("qwen3_next", ("q_proj", "up_proj"), ["up_proj cannot carry an adapter", "stacked experts"]),
        ("qwen3_next", r".*shared_expert\.gate_proj", ["cannot carry an adapter", "stacked experts"]),
        ("gpt_oss", ("gate_up_proj",), ["gate_up_proj is not in this base as a layer", "several experts"]),
    ],
    ids=str,
)
def test_a_target_that_can_nowhere_carry_an_adapter_is_refused(folder_of, name, targets, parts):
    with pytest.raises(ModelError) as caught:
        load(folder_of(name), "none", lora=LoraSpec(r=4, target_modules=targets))
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "that can carry one" in message and "\n" not in message


@uncalled
@pytest.mark.parametrize("targets", [r".*mamba\.\w+_proj|.*self_attn\.q_proj", r".*proj"])
def test_a_pattern_goes_on_those_of_its_layers_that_can(folder_of, caplog, targets):
    base = load(folder_of("jamba"), "none", lora=LoraSpec(r=4, target_modules=targets))
    on = short(base.model.peft_config[POLICY].target_modules)
    assert {"in_proj", "x_proj", "out_proj", "q_proj"} <= on and "dt_proj" not in on
    assert "dt_proj" in told(caplog)[0]


@pytest.mark.parametrize("name", ["jamba", "qwen3_next", "falcon_h1"])
def test_what_is_saved_loads_with_peft_and_says_the_same(folder_of, tmp_path, name):
    base = load(folder_of(name), "none")
    stir(base, POLICY)
    base.roles.save(POLICY, tmp_path / "adapter")
    ids = tokens(2, 9)
    with base.role(POLICY, train=False), torch.no_grad():
        expected = base.lm(input_ids=ids, use_cache=False).logits
    with quiet():
        plain = AutoModelForCausalLM.from_pretrained(folder_of(name), dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids, use_cache=False).logits, expected, atol=1e-4)
    base.roles.load(POLICY, str(tmp_path / "adapter"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A model for text and pictures, whose vision part no text passes through."""
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = Gemma3Config(
        text_config={**COMMON, "head_dim": 16},
        vision_config={**vision, "image_size": 56, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=290,
        boi_token_index=291,
        eoi_token_index=292,
    )
    folder = tmp_path_factory.mktemp("pictures")
    with quiet():
        Gemma3ForConditionalGeneration(made).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")], ids=str)
def test_a_vision_part_carries_no_adapter(pictures, caplog, targets):
    base = load(pictures, "none", lora=LoraSpec(r=4, target_modules=targets))
    on = base.model.peft_config[POLICY].target_modules
    assert on and not any("vision" in name for name in on)
    assert "vision_tower" in told(caplog)[0] and "never called for text" in told(caplog)[0]


class Routed(nn.Module):
    """Experts that are layers of their own, of which one is called."""

    def __init__(self):
        super().__init__()
        self.config = config("llama")
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.unused = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def get_output_embeddings(self):
        return None

    def forward(self, input_ids, use_cache):
        return self.experts[int(input_ids[0, 0]) % 4](torch.ones(1, 8))


def test_an_expert_that_no_token_came_to_can_still_carry_one():
    found = targets_of(Routed(), torch.tensor([[2]]))
    assert found.able == [f"experts.{i}" for i in range(4)] and set(found.unable) == {"unused.0", "unused.1"}


def test_plans_count_adapters_where_they_are_put():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config("mamba"))
    shape = of_model(model, torch.float32, "cpu", held_as("nf4")["quantizer"])
    assert "out_proj" not in short(layer.name for layer in shape.targets("all-linear"))
    assert any(layer.name.endswith("out_proj") and layer.quantized for layer in shape.linear)
