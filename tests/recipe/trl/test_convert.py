"""`recipes from-trl`: real-looking configurations become recipes that validate, and nothing is lost in silence."""

import dataclasses
import json

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlhf_peft import cli, maths
from rlhf_peft.errors import UsageError
from rlhf_peft.recipe import convert, load
from rlhf_peft.recipe.trl.config import (
    DEFAULTS,
    ONLINE,
    REASONS,
    RENAMED_KEYS,
    TRAINERS,
    TRAINERS_OF_KEY,
    TRAINERS_OF_LOSS,
)
from rlhf_peft.registry import Registry

GRPO = """\
# trl grpo --config grpo.yaml
model_name_or_path: Qwen/Qwen2.5-1.5B-Instruct
torch_dtype: bfloat16
attn_implementation: flash_attention_2
dataset_name: trl-lib/DeepMath-103K
bf16: true
use_vllm: true
vllm_mode: colocate
gradient_accumulation_steps: 4
gradient_checkpointing_kwargs:
  use_reentrant: false
learning_rate: 2e-6
logging_steps: 1
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs:
  min_lr_rate: 0.1
max_prompt_length: 512
max_completion_length: 2048
max_steps: 200
num_generations: 16
num_iterations: 2
steps_per_generation: 8
scale_rewards: false
loss_type: dr_grpo
epsilon_high: 0.28
output_dir: data/Qwen2.5-1.5B-GRPO
per_device_train_batch_size: 16
push_to_hub: true
report_to: [wandb]
reward_funcs:
  - accuracy_reward
  - think_format_reward
  - my_lib.rewards.tag_count
reward_weights: [1.0, 1.0, 0.5]
seed: 7
delta: 4.0
warmup_ratio: 0.1
"""
DPO = """\
model_name_or_path: Qwen/Qwen3-0.6B
dataset_name: trl-lib/ultrafeedback_binarized
dataset_train_split: train
learning_rate: 5.0e-6
num_train_epochs: 1
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
gradient_checkpointing: false
beta: 0.05
label_smoothing: 0.1
loss_type: [sigmoid]
eval_strategy: steps
eval_steps: 50
output_dir: Qwen3-0.6B-DPO
use_peft: true
lora_r: 32
lora_alpha: 16
lora_target_modules: [q_proj, v_proj]
load_in_4bit: true
use_bnb_nested_quant: true
optim: paged_adamw_8bit
warmup_steps: 20
"""
SFT = {
    "model_name_or_path": "HuggingFaceTB/SmolLM2-360M",
    "model_revision": "main",
    "dataset_name": "trl-lib/Capybara",
    "dataset_text_field": "content",
    "packing": True,
    "max_seq_length": 2048,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "assistant_only_loss": False,
    "use_liger_kernel": True,
    "load_in_8bit": True,
    "use_peft": True,
    "lora_target_modules": "all-linear",
    "run_name": "smol/sft one",
}
REWARD = """\
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
dataset_name: trl-lib/ultrafeedback_binarized
center_rewards_coefficient: 1.0e-2
per_device_train_batch_size: 8
"""
KTO = """\
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
datasets:
  - path: trl-lib/kto-mix-14k
    split: train[:50%]
  - path: trl-lib/other
desirable_weight: 1.33
loss_type: apo_zero_unpaired
"""
RLOO = """\
model_name_or_path: EleutherAI/pythia-1b-deduped
dataset_name: trl-lib/tldr
reward_model_name_or_path: cleanrl/EleutherAI_pythia-1b-deduped__reward__tldr
normalize_advantages: true
reward_clip_range: [-10, 10]
per_device_train_batch_size: 16
num_generations: 4
temperature: 0.7
top_p: 0.9
"""


@pytest.fixture(scope="module")
def registry():
    return Registry.load((), True)


@pytest.fixture
def made(tmp_path):
    def make(config, trainer=None, name="config.yaml"):
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / name).write_text(text)
        return convert(tmp_path / name, trainer)

    return make


def notes_of(found):
    return dict(found.notes)


def only_stage(found):
    (stage,) = found.data["stages"]
    return stage


def test_grpo(made, registry):
    found = made(GRPO)
    stage, notes = only_stage(found), notes_of(found)
    recipe = found.data
    assert recipe["name"] == "Qwen2.5-1.5B-GRPO"
    assert recipe["seed"] == 7
    assert recipe["model"] == {
        "path": "Qwen/Qwen2.5-1.5B-Instruct",
        "quantization": "none",
        "compute_dtype": "bfloat16",
        "attn_implementation": "flash_attention_2",
        "gradient_checkpointing": True,
        "max_length": 512 + 2048,
    }
    # 16 rows a forward, 8 forwards a rollout, 16 completions a prompt; an update of 64 rows is half of a rollout.
    assert stage["prompts_per_step"] == 16 * 8 // 16
    assert stage["algorithm"] == {
        "name": "grpo",
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "beta": 0.0,
        "epsilon": 0.2,
        "entropy_coef": 0.0,
        "epsilon_high": 0.28,
        "num_generations": 16,
        "num_epochs": 2,
        "num_minibatches": 2,
        "mask_truncated_completions": False,
    }
    # Four updates a rollout: TRL's 200 updates are 50 of our steps.
    assert stage["max_steps"] == 50
    assert stage["learning_rate"] == 2e-6
    assert stage["warmup"] == 0.1
    assert stage["lr_scheduler"] == "cosine"
    assert stage["sampler"] == {"name": "cached", "max_new_tokens": 2048, "temperature": 1.0}
    assert [entry["name"] for entry in stage["rewards"]] == ["numeric_answer", "regex", "tag_count"]
    assert [entry["weight"] for entry in stage["rewards"]] == [1.0, 1.0, 0.5]
    assert "--reward my_lib/rewards.py:tag_count" in notes["reward_funcs.my_lib.rewards.tag_count"]
    assert {"delta", "push_to_hub", "report_to", "use_vllm", "lr_scheduler_type", "use_peft"} <= set(notes)
    assert notes["delta"] == "left out: there is nothing like it here"
    without = [entry for entry in stage["rewards"] if entry["name"] != "tag_count"]
    load({**recipe, "stages": [{**stage, "rewards": without}]}, plugins=registry)


def test_dpo(made, registry):
    found = made(DPO)
    stage = only_stage(found)
    assert found.data["lora"] == {
        "r": 32,
        "alpha": 16,
        "dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": False,
    }
    assert found.data["model"]["quantization"] == {"name": "nf4", "double_quantization": True}
    assert found.data["model"]["gradient_checkpointing"] is False
    assert found.data["model"]["max_length"] == 1024
    assert (stage["stage"], stage["method"], stage["beta"], stage["label_smoothing"]) == (
        "preference",
        "dpo",
        0.05,
        0.1,
    )
    assert stage["batch_size"] == 16
    assert stage["warmup"] == 20.0
    assert stage["optimizer"] == "paged_adamw_8bit"
    assert stage["eval"] == {"split": "test", "every": 50}
    assert set(notes_of(found)) == {"output_dir", "max_length"}
    load(found.data, plugins=registry)


def test_sft_from_json(made, registry):
    found = made(SFT, name="config.json")
    stage = only_stage(found)
    assert found.data["name"] == "sft-one"
    assert found.data["model"]["quantization"] == "int8"
    assert found.data["model"]["max_length"] == 2048
    assert found.data["lora"]["target_modules"] == "all-linear"
    assert stage["packing"] is True
    assert stage["dataset"]["columns"] == {"text": "content"}
    assert stage["learning_rate"] == DEFAULTS["sft"]["learning_rate"] == 2e-5
    assert "use_liger_kernel" in notes_of(found)
    load(found.data, plugins=registry)


def test_reward(made, registry):
    found = made(REWARD)
    stage = only_stage(found)
    assert stage["stage"] == "reward_model"
    assert stage["center_rewards_coefficient"] == 0.01
    assert stage["normalize"] == "none"
    assert stage["num_train_epochs"] == 3
    load(found.data, plugins=registry)


def test_kto(made, registry):
    found = made(KTO)
    stage, notes = only_stage(found), notes_of(found)
    assert stage["dataset"]["path"] == "trl-lib/kto-mix-14k"
    assert stage["dataset"]["split"] == "train[:50%]"
    assert (stage["method"], stage["desirable_weight"], stage["undesirable_weight"]) == ("kto", 1.33, 1.0)
    assert "another method" in notes["loss_type"]
    assert "1 more" in notes["datasets"]
    load(found.data, plugins=registry)


def test_rloo(made, registry):
    found = made(RLOO)
    stage, notes = only_stage(found), notes_of(found)
    assert stage["algorithm"]["name"] == "rloo"
    assert stage["algorithm"]["normalize_advantages"] is True
    assert stage["algorithm"]["beta"] == 0.05
    assert stage["prompts_per_step"] == 4
    assert stage["sampler"]["temperature"] == 0.7
    assert stage["rewards"] == [
        {
            "name": "classifier",
            "model": "cleanrl/EleutherAI_pythia-1b-deduped__reward__tldr",
            "weight": 1.0,
            "clip": [-10, 10],
        }
    ]
    assert "top_p" in notes
    load(found.data, plugins=registry)


@pytest.mark.parametrize(
    ("more", "algorithm"),
    [
        ("loss_type: cispo\nepsilon_high: 5.0\n", {"name": "cispo", "epsilon_high": 5.0}),
        ("importance_sampling_level: sequence\nepsilon: 3e-4\n", {"name": "gspo", "epsilon": 3e-4}),
        ("loss_type: sapo\n", {"name": "grpo", "loss_type": "dapo"}),
        ("scale_rewards: batch\n", {"name": "grpo", "scale_rewards": "batch", "loss_type": "dapo"}),
    ],
)  # fmt: skip
def test_kinds_of_grpo(made, registry, more, algorithm):
    found = made(f"model_name_or_path: m\ndataset_name: d/d\nreward_funcs: accuracy_reward\n{more}", "grpo")
    ours = only_stage(found)["algorithm"]
    assert {key: ours[key] for key in algorithm} == algorithm
    assert ("loss_type" in notes_of(found)) == ("sapo" in more or "sequence" in more)
    load(found.data, plugins=registry)


def test_the_sampler_is_corrected_as_asked(made):
    base = "model_name_or_path: m\ndataset_name: d/d\nreward_funcs: accuracy_reward\nscale_rewards: group\n"
    assert "importance_cap" not in only_stage(made(base))
    assert only_stage(made(base + "vllm_importance_sampling_cap: 3.0"))["importance_cap"] == 3.0
    assert only_stage(made(base + "vllm_importance_sampling_correction: false"))["importance_cap"] is None


def test_what_is_printed_is_the_recipe_with_its_notes(made, tmp_path):
    found = made(GRPO)
    assert yaml.safe_load(found.text) == found.data
    comment = [line for line in found.text.splitlines() if line.startswith("#")]
    for key, text in found.notes:
        assert f"#   {key}: {text}" in comment
    (tmp_path / "mine.yaml").write_text(found.text)
    assert load(tmp_path / "mine.yaml").name == found.data["name"]


def test_the_command_prints_the_recipe_and_tells_the_rest_on_stderr(tmp_path, capsys):
    (tmp_path / "dpo.yaml").write_text(DPO + "push_to_hub: true\n")
    assert cli.execute(["recipes", "from-trl", str(tmp_path / "dpo.yaml")]) == 0
    out, err = capsys.readouterr()
    assert load(yaml.safe_load(out)).stages[0].method == "dpo"
    assert "push_to_hub: left out: " in err


@pytest.mark.parametrize(
    ("text", "trainer", "told"),
    [
        (
            "learning_rate: 1e-5\n",
            None,
            "no key says which trainer it is for. Name it: --trainer sft|reward|dpo",
        ),
        (
            "num_generations: 8\n",
            None,
            "num_generations could be for grpo or rloo. Name it: --trainer grpo|rloo",
        ),
        ("beta: 0.1\nmax_length: 9\n", None, "could be for dpo or kto. Name it: --trainer dpo|kto"),
        (
            "packing: true\nnum_generations: 8\n",
            None,
            "num_generations, packing do not belong to one trainer",
        ),
        ("beta: 0.1\n", "gpro", "--trainer gpro: unknown. Did you mean grpo?"),
        ("num_generations: 3\n", "grpo", "num_generations: 3 does not divide the 8 completions of a rollout"),
        ("learning_rate: fast\n", "sft", "learning_rate: expected a number, found 'fast'"),
        ("gradient_accumulation_steps: 0\n", "grpo", "expected a whole number above 0, found 0"),
        ("reward_funcs: [a.b, c.d]\nreward_weights: [1]\n", "grpo", "reward_weights: 1 for 2 rewards"),
        ("learning_rate: -1\n", "sft", "stages.sft.learning_rate: expected a number greater than 0"),
        ("- 1\n", "sft", "expected keys"),
        ("a: [\n", "sft", "not valid YAML"),
    ],
)
def test_what_cannot_be_a_recipe_says_why(made, text, trainer, told):
    with pytest.raises(UsageError) as caught:
        made(text, trainer)
    assert told in str(caught.value)
    assert "config.yaml" in str(caught.value) or "--trainer gpro" in str(caught.value)


def test_json_that_is_none(made):
    with pytest.raises(UsageError, match="not valid JSON"):
        made("{", "sft", name="config.json")
    with pytest.raises(UsageError, match="expected an object"):
        made("[1]", "sft", name="config.json")
    with pytest.raises(UsageError, match="no such recipe file"):
        convert("nowhere.yaml", "sft")


@pytest.mark.parametrize(("where", "name"), [("output_dir", "grpo.yaml"), ("run_name", "my-grpo-run.yaml")])
def test_a_name_decides_where_the_keys_leave_two(made, where, name):
    text = "model_name_or_path: m\ndataset_name: d/d\nreward_funcs: accuracy_reward\nnum_generations: 8\n"
    assert only_stage(made(text, name=name))["algorithm"]["name"] == "grpo"
    assert only_stage(made(f"{text}{where}: out/tldr-RLOO\n"))["algorithm"]["name"] == "rloo"


@pytest.mark.parametrize("trainer", TRAINERS)
def test_an_empty_configuration_is_trls_defaults_and_says_what_is_missing(made, trainer, registry):
    found = made("{}", trainer)
    stage, defaults = only_stage(found), DEFAULTS[trainer]
    assert stage["learning_rate"] == defaults["learning_rate"]
    assert stage["num_train_epochs"] == 3
    if trainer in ONLINE:
        assert stage["prompts_per_step"] == 8 // defaults.get("num_generations", 1)
        most = {"online_dpo": 64, "ppo": 53}.get(trainer, 512)
        assert stage["sampler"]["max_new_tokens"] == most
    else:
        assert stage["batch_size"] == 8
    assert {"model_name_or_path", "dataset_name"} <= set(notes_of(found))
    assert load(found.data).seed == 42


def test_the_defaults_are_those_of_the_trl_that_is_installed():
    trl = pytest.importorskip("trl")
    names = {"sft": "SFT", "reward": "Reward", "dpo": "DPO", "kto": "KTO", "grpo": "GRPO", "rloo": "RLOO"}
    configs = {trainer: getattr(trl, f"{prefix}Config") for trainer, prefix in names.items()}
    configs["online_dpo"] = pytest.importorskip("trl.experimental.online_dpo").OnlineDPOConfig
    compared = 0
    for trainer, config in configs.items():
        classes = [config, trl.ModelConfig, trl.ScriptArguments]
        fields = {field.name: field for cls in reversed(classes) for field in dataclasses.fields(cls)}
        for key, ours in DEFAULTS[trainer].items():
            theirs = fields[key].default
            if key == "min_p":
                assert theirs is None  # which is 0
            else:
                assert theirs == ours, (trainer, key)
            compared += 1
        for key, owners in TRAINERS_OF_KEY.items():
            if key in fields and key not in ("max_prompt_length",):
                assert trainer in owners, (trainer, key)
    assert compared > 100


KEYS = sorted(
    {
        *DEFAULTS["grpo"],
        *DEFAULTS["kto"],
        *TRAINERS_OF_KEY,
        *REASONS,
        *RENAMED_KEYS,
        "datasets",
        "model_init_kwargs",
        "optim",
    }
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 64),
    st.floats(),
    st.sampled_from([*TRAINERS_OF_LOSS, "steps", "all-linear", "1e-5", ""]),
    st.lists(st.one_of(st.integers(0, 3), st.text(max_size=5)), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


@given(data=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8), trainer=st.sampled_from(TRAINERS))
def test_any_configuration_gives_a_recipe_or_a_reason(tmp_path_factory, data, trainer):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(data))
    try:
        found = convert(path, trainer)
    except UsageError as error:
        assert "any.json" in str(error)
        return
    assert load(found.data) is not None
    assert yaml.safe_load(found.text) == found.data


def test_adamws_coefficients_are_kept(made, registry):
    """Where they are the usual ones they are not written."""
    given = {"adam_epsilon": 1.0e-6, "adam_beta1": 0.9, "adam_beta2": 0.95}
    found = made(DPO + "".join(f"{key}: {value}\n" for key, value in given.items()))
    stage = only_stage(found)
    assert stage["adam_epsilon"] == 1e-6 and stage["adam_beta2"] == 0.95 and "adam_beta1" not in stage
    assert not set(given) & set(notes_of(found))
    load(found.data, plugins=registry)


ONLINE_DPO = """\
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
dataset_name: trl-lib/tldr
reward_model_path: some/reward-model
missing_eos_penalty: 1.0
beta: [0.2]
loss_type: ipo
max_new_tokens: 48
max_length: 256
top_p: 0.9
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
"""
PPO = """\
model_name_or_path: EleutherAI/pythia-160m
sft_model_path: me/pythia-160m-sft
reward_model_path: some/reward-model
dataset_name: trl-internal-testing/descriptiveness-sentiment-trl-style
num_ppo_epochs: 2
num_mini_batches: 2
total_episodes: 10000
per_device_train_batch_size: 16
gradient_accumulation_steps: 4
kl_coef: 0.1
cliprange: 0.3
vf_coef: 0.2
lam: 0.9
response_length: 32
stop_token: eos
missing_eos_penalty: 1.0
learning_rate: 3e-6
"""


def test_online_dpo(made, registry):
    found = made(ONLINE_DPO)
    stage = only_stage(found)
    assert stage["algorithm"] == {"name": "online_dpo", "num_generations": 2, "beta": 0.2, "loss_type": "ipo"}
    assert (stage["prompts_per_step"], stage["missing_eos_penalty"]) == (32, 1.0)
    assert stage["sampler"] == {"name": "cached", "max_new_tokens": 48, "temperature": 0.9, "top_p": 0.9}
    assert stage["rewards"][0] == {"name": "classifier", "model": "some/reward-model", "weight": 1.0}
    assert found.data["model"]["max_length"] == 256
    assert not any("left out" in text for _, text in found.notes)
    load(found.data, plugins=registry)


def test_a_plain_dpo_is_not_taken_for_an_online_one(made):
    text = "model_name_or_path: m\ndataset_name: d/d\nbeta: 0.1\nloss_type: sigmoid\n"
    assert only_stage(made(text))["method"] == "dpo"
    assert only_stage(made(text, name="my-online-dpo.yaml"))["algorithm"]["name"] == "online_dpo"


def test_ppo(made, registry):
    found = made(PPO)
    stage, notes = only_stage(found), notes_of(found)
    assert stage["algorithm"] == {
        "name": "ppo",
        "num_generations": 1,
        "num_epochs": 2,
        "num_minibatches": 2,
        "beta": 0.1,
        "kl_estimator": "k1",
        "kl_placement": "reward",
        "epsilon": 0.3,
        "vf_coef": 0.2,
        "cliprange_value": 0.2,
        "gamma": 1.0,
        "lam": 0.9,
        "whiten_rewards": False,
    }
    assert (stage["prompts_per_step"], stage["max_steps"], stage["missing_eos_penalty"]) == (128, 79, 1.0)
    assert stage["sampler"] == {"name": "cached", "max_new_tokens": 32, "temperature": 0.7}
    assert found.data["model"]["path"] == "me/pythia-160m-sft" and "sft_model_path" in notes
    load(found.data, plugins=registry)


@pytest.mark.parametrize(
    ("more", "estimator", "said"),
    [
        ("beta: 0.04\n", "k2", True),
        ("beta: 0.04\nuse_bias_correction_kl: true\n", "k2", True),
        ("beta: 0.04\nuse_bias_correction_kl: false\n", "k3", False),
        ("beta: 0.04\nloss_type: cispo\n", "k2", True),
        ("beta: 0.0\n", None, False),
    ],
)
def test_the_kl_has_the_gradient_of_trls(made, registry, more, estimator, said):
    found = made(f"model_name_or_path: m\ndataset_name: d/d\nreward_funcs: accuracy_reward\n{more}", "grpo")
    assert only_stage(found)["algorithm"].get("kl_estimator") == estimator
    assert ("use_bias_correction_kl" in notes_of(found)) is said
    load(found.data, plugins=registry)


def test_a_corrected_k3_and_k2_have_one_gradient_where_the_ratio_is_1():
    old = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    ref = old + 0.7 * torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double()

    def gradient(term):
        logps = old.clone().requires_grad_()
        term(logps).sum().backward()
        return logps.grad

    trl = gradient(lambda logps: ((ref - logps).exp() - (ref - logps) - 1) * (logps - old).exp())
    assert torch.allclose(trl, gradient(lambda logps: maths.kl_estimate(logps, ref, "k2")))
    assert not torch.allclose(trl, gradient(lambda logps: maths.kl_estimate(logps, ref, "k3")), atol=0.1)


def test_several_rewards_are_combined_as_in_trl(made, registry):
    text = "model_name_or_path: m\ndataset_name: d/d\nreward_funcs: [accuracy_reward, think_format_reward]\n"
    stage = only_stage(made(text, "grpo"))
    assert stage["algorithm"]["scale_rewards"] == "group" and "normalize" not in stage["rewards"][0]
    found = made(text + "multi_objective_aggregation: normalize_then_sum\n")
    stage = only_stage(found)
    assert [entry["normalize"] for entry in stage["rewards"]] == ["group", "group"]
    assert stage["algorithm"]["scale_rewards"] == "batch" and "multi_objective_aggregation" in notes_of(found)
    load(found.data, plugins=registry)


@pytest.mark.parametrize("trainer", ONLINE)
def test_a_penalty_for_a_missing_end_is_kept(made, registry, trainer):
    found = made("model_name_or_path: m\ndataset_name: d/d\nmissing_eos_penalty: 0.5\n", trainer)
    assert only_stage(found)["missing_eos_penalty"] == 0.5
    assert "missing_eos_penalty" not in notes_of(found)
