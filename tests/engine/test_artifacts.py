"""Roles on disk: they load in plain PEFT, and what others saved is taken in or refused with a reason."""

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from rlhf_peft.builtin.quantizers.compat import disable_bf16_cpu_kernels
from rlhf_peft.engine import POLICY, VALUE, LoraSpec
from rlhf_peft.engine.base_spec import quiet
from rlhf_peft.errors import ModelError

from .support import PAD, edit_json, everything, load, stir, tokens


def hidden(base, role):
    with base.role(role, train=False), torch.no_grad():
        return base.forwards.hidden(tokens(2, 7))


def logits(base, role):
    with base.role(role, train=False), torch.no_grad():
        return base.lm(input_ids=tokens(2, 7)).logits


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_saved_role_loads_in_plain_peft(folder_of, tmp_path, name, quantization):
    base = load(folder_of(name), quantization)
    stir(base, POLICY)
    base.roles.save(POLICY, tmp_path / POLICY)
    options = {}
    if quantization == "nf4":
        skip = [r"model\.layers\.\d+\.mlp\.down_proj", "lm_head"] if name == "llama" else None
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=skip,
        )
    with quiet():
        plain = AutoModelForCausalLM.from_pretrained(folder_of(name), dtype=torch.float32, **options)
    disable_bf16_cpu_kernels(plain)
    peft = PeftModel.from_pretrained(plain, tmp_path / POLICY).eval()
    with torch.no_grad():
        assert torch.equal(peft(input_ids=tokens(2, 7)).logits, logits(base, POLICY))
    config = json.loads((tmp_path / POLICY / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder_of(name))
    assert config["inference_mode"] is True and config["task_type"] == "CAUSAL_LM"
    assert sorted(p.name for p in (tmp_path / POLICY).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    ]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_saved_role_is_what_peft_itself_would_save(folder_of, tmp_path, name, quantization):
    base = load(folder_of(name), quantization)
    base.roles.add("reward-0", like=POLICY, lora=LoraSpec(r=2))
    stir(base, POLICY)
    base.roles.save(POLICY, tmp_path / "ours")
    weights = get_peft_model_state_dict(base.model, adapter_name=POLICY, save_embedding_layers=False)
    save_file(weights, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours = (tmp_path / "ours" / "adapter_model.safetensors").read_bytes()
    assert len(weights) > 4 and ours == (tmp_path / "theirs.safetensors").read_bytes()


def test_what_is_written_does_not_depend_on_the_order_of_a_set(llama, tmp_path):
    config = llama.model.peft_config[POLICY]
    before, config.target_modules = (
        config.target_modules,
        {"v_proj", "q_proj", "up_proj", "k_proj", "down_proj", "o_proj"},
    )
    try:
        llama.roles.save(POLICY, tmp_path)
    finally:
        config.target_modules = before
    told = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert told == sorted(told) and len(told) == 6 and isinstance(before, set)


def test_a_saved_role_finds_its_base(dense, tmp_path):
    stir(dense, POLICY)
    dense.roles.save(POLICY, tmp_path)
    with quiet():
        found = AutoPeftModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(found(input_ids=tokens(2, 7)).logits, logits(dense, POLICY))


@pytest.fixture(scope="module")
def run(folder_of, tmp_path_factory):
    """A run folder with every role, and the base that saved it."""
    base = load(folder_of("llama"))
    base.roles.add("reward-0", head=True)
    base.roles.add(
        "reward-1", head=True, lora=LoraSpec(r=3, target_modules=("q_proj", "down_proj"), use_rslora=True)
    )
    base.roles.add(VALUE, trunk="reward-0", head=True)
    for seed, role in enumerate((POLICY, "reward-0", "reward-1")):
        stir(base, role, seed)
    base.roles.heads["reward-1"].shift.fill_(1.5), base.roles.heads["reward-1"].scale.fill_(0.5)
    folder = tmp_path_factory.mktemp("run")
    for role in base.roles.names:
        base.roles.save(role, folder / "adapters" / role)
    return base, folder


@pytest.mark.parametrize("role", [POLICY, "reward-0", "reward-1", VALUE])
@pytest.mark.parametrize("layout", ["run", "folder"])
def test_a_role_comes_back_as_it_was_saved(run, llama, role, layout):
    base, folder = run
    head = role != POLICY
    place = folder if layout == "run" else folder / "adapters" / role
    before = everything(llama)["active"]
    assert llama.roles.load(role, str(place), head=head) == folder / "adapters" / role
    assert torch.equal(hidden(llama, role), hidden(base, role))
    assert everything(llama)["active"] == before[:1] * len(llama.roles.active.layers)
    assert not any(p.requires_grad for p in [*llama.model.parameters(), *llama.roles.heads.parameters()])
    if head:
        mine, theirs = llama.roles.heads[role].state_dict(), base.roles.heads[role].state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert llama.roles.load("judge", str(folder / "adapters" / role), head=head)
    assert torch.equal(hidden(llama, "judge"), hidden(base, role))


def test_a_run_with_one_reward_may_call_it_so(run, llama, tmp_path):
    _, folder = run
    shutil.copytree(folder / "adapters" / "reward-0", tmp_path / "adapters" / "reward")
    assert llama.roles.load("reward-0", str(tmp_path), head=True).name == "reward"
    assert llama.roles.load("reward", str(folder), head=True).name == "reward-0"
    with pytest.raises(ModelError, match=r"init.reward: .* reward-3 \(adapters/reward-3/\)"):
        llama.roles.load("reward-3", str(folder), head=True)


def test_a_whole_ensemble_is_taken_in(run, llama):
    base, folder = run
    for name in ("reward-0", "reward-7"):
        llama.roles.add(name, head=True)
    assert llama.roles.load_ensemble("reward", str(folder)) == ["reward-0", "reward-1"]
    assert [role for role in llama.roles.names if role.startswith("reward")] == ["reward-0", "reward-1"]
    for role in ("reward-0", "reward-1"):
        assert torch.equal(hidden(llama, role), hidden(base, role))
    assert llama.roles.load_ensemble("reward", str(folder / "adapters" / "reward-1")) == ["reward-0"]
    assert torch.equal(hidden(llama, "reward-0"), hidden(base, "reward-1"))
    assert "reward-1" not in llama.roles.names


def test_the_raw_base_is_always_a_role(llama):
    assert llama.roles.adapter_of("base") is None


def test_the_policy_may_be_loaded_after_other_roles(run, llama):
    base, folder = run
    llama.roles.load("reward-0", str(folder), head=True)
    llama.roles.load(POLICY, str(folder))
    assert torch.equal(hidden(llama, POLICY), hidden(base, POLICY))
    assert torch.equal(hidden(llama, "reward-0"), hidden(base, "reward-0"))


def test_a_head_is_not_left_from_an_earlier_save(run, tmp_path):
    base, _ = run
    base.roles.save("reward-0", tmp_path)
    base.roles.save(POLICY, tmp_path)
    assert not (tmp_path / "head.safetensors").exists()


# --- what does not fit


@pytest.fixture
def stored(run, tmp_path):
    """A copy of a reward's folder, to be spoiled."""
    return shutil.copytree(run[1] / "adapters" / "reward-0", tmp_path / "adapter")


def refused(base, folder, match, role="reward-0", head=True):
    stir(base, POLICY)
    before, start = everything(base), hidden(base, POLICY)
    with pytest.raises(ModelError, match=match):
        base.roles.load(role, str(folder), head=head)
    assert everything(base) == before and torch.equal(hidden(base, POLICY), start)
    assert set(base.roles.names) == {POLICY} and list(base.model.peft_config) == [POLICY]


def test_an_adapter_of_another_base(run, folder_of):
    other = load(folder_of("llama_bias"), accepted=("base",))
    first = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    for role in (POLICY, "reward-0"):
        refused(
            other,
            run[1],
            f"adapters/{role}: .*other shapes.*first {first}.*another base",
            role,
            role != POLICY,
        )


def test_an_adapter_of_another_architecture(run, folder_of):
    refused(
        load(folder_of("gpt2"), accepted=("base",)),
        run[1],
        "adapters/policy: lora.target_modules: model.layers.0.*not in this base.*c_attn",
        POLICY,
        False,
    )


def test_files_that_are_missing(llama, stored, tmp_path):
    refused(llama, tmp_path / "nowhere", "init.reward: .*nowhere does not exist. Expected a run folder")
    refused(llama, "some-name", "init.reward: some-name does not exist")
    (tmp_path / "empty").mkdir()
    refused(llama, tmp_path / "empty", "neither an adapter .* nor a run")
    refused(llama, "nobody/nothing-at-all", "init.reward: nobody/nothing-at-all .*cannot be fetched")
    (stored / "head.safetensors").unlink()
    refused(llama, stored, r"no scalar head \(head.safetensors")
    (stored / "adapter_model.safetensors").rename(stored / "adapter_model.bin")
    refused(llama, stored, "no adapter_model.safetensors .*pickled .bin files are not read")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("keep", [0, 40, -8])
def test_files_that_are_cut_short(llama, stored, name, keep):
    path = stored / name
    path.write_bytes(path.read_bytes()[:keep])
    refused(llama, stored, f"{name}: cannot be read")


def test_tensors_too_many_and_too_few(llama, stored):
    path = stored / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({**weights, "base_model.model.extra.lora_A.weight": torch.zeros(4, 64)}, path)
    refused(llama, stored, "has no place for 1 tensors, the first base_model.model.extra.lora_A.weight")
    first = min(weights)
    save_file({key: value for key, value in weights.items() if key != first}, path)
    refused(llama, stored, f"lacks 1 tensors, the first {first}")


def test_a_head_of_another_width(llama, stored):
    head = load_file(stored / "head.safetensors")
    save_file({**head, "weight": torch.zeros(2, 64)}, stored / "head.safetensors")
    refused(llama, stored, r"the head holds .*\[2, 64\].* needs .*\[1, 64\]")


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"init_lora_weights": "pissa"},
        {"trainable_token_indices": [3]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"target_modules": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_adapters_that_roles_cannot_be(llama, stored, change):
    edit_json(stored / "adapter_config.json", **change)
    refused(
        llama,
        stored,
        next(iter(change)) if "modules_to_save" not in change else "whole modules.*embed_tokens",
    )


def test_adapters_that_are_no_lora(llama, stored):
    (stored / "adapter_config.json").write_text(
        json.dumps({"peft_type": "IA3", "target_modules": ["q_proj"]})
    )
    refused(llama, stored, "an adapter of type IA3; only LoRA")
    (stored / "adapter_config.json").write_text(json.dumps({"peft_type": "MAGIC"}))
    refused(llama, stored, "cannot be read as an adapter's configuration")


def test_the_raw_base_cannot_be_saved(llama, tmp_path):
    llama.roles.freeze_reference()
    with pytest.raises(ModelError, match="reference is the raw base"):
        llama.roles.save("reference", tmp_path / "reference")
    assert not (tmp_path / "reference").exists()


# --- reward models that others made


@pytest.mark.parametrize("labels", [1, 2])
def test_a_sequence_classifier_is_taken_in_as_a_reward(folder_of, dense, tmp_path, labels):
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            folder_of("llama"), num_labels=labels, pad_token_id=PAD, dtype=torch.float32
        )
    config = LoraConfig(r=5, target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=False)
    peft = get_peft_model(model, config).eval()
    peft.save_pretrained(tmp_path)
    if labels == 2:
        refused(dense, tmp_path, r"\[2, 64\].*one score a row")
        return
    dense.roles.load("reward-0", str(tmp_path), head=True)
    ids = tokens(3, 9)
    ids[1, 6:] = PAD
    with torch.no_grad(), dense.role("reward-0", train=False):
        expected = peft(input_ids=ids, attention_mask=(ids != PAD).long()).logits[:, 0]
        found = dense.forwards.rewards(dense.forwards.hidden(ids), torch.tensor([9, 6, 9]), "reward-0")
    assert torch.allclose(found, expected, atol=1e-5)
    dense.roles.save("reward-0", tmp_path / "again")
    dense.roles.load("reward-1", str(tmp_path / "again"), head=True)
    assert torch.equal(hidden(dense, "reward-1"), hidden(dense, "reward-0"))
