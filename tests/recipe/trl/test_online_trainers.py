"""Configurations of TRL's GRPO, RLOO, PPO and online DPO trainers become recipes; nothing is lost in silence."""

import pytest
import torch

from rlhf_peft import maths
from rlhf_peft.recipe import load
from rlhf_peft.recipe.trl.config import ONLINE

from .support import GRPO, notes_of, only_stage

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


def test_grpo(made, registry):
    conversion = made(GRPO)
    stage, notes = only_stage(conversion), notes_of(conversion)
    recipe = conversion.data
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


def test_rloo(made, registry):
    conversion = made(RLOO)
    stage, notes = only_stage(conversion), notes_of(conversion)
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
    load(conversion.data, plugins=registry)


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
    conversion = made(
        f"model_name_or_path: m\ndataset_name: d/d\nreward_funcs: accuracy_reward\n{more}", "grpo"
    )
    ours = only_stage(conversion)["algorithm"]
    assert {key: ours[key] for key in algorithm} == algorithm
    assert ("loss_type" in notes_of(conversion)) == ("sapo" in more or "sequence" in more)
    load(conversion.data, plugins=registry)


def test_the_sampler_is_corrected_as_asked(made):
    base = "model_name_or_path: m\ndataset_name: d/d\nreward_funcs: accuracy_reward\nscale_rewards: group\n"
    assert "importance_cap" not in only_stage(made(base))
    assert only_stage(made(base + "vllm_importance_sampling_cap: 3.0"))["importance_cap"] == 3.0
    assert only_stage(made(base + "vllm_importance_sampling_correction: false"))["importance_cap"] is None


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
    conversion = made(ONLINE_DPO)
    stage = only_stage(conversion)
    assert stage["algorithm"] == {"name": "online_dpo", "num_generations": 2, "beta": 0.2, "loss_type": "ipo"}
    assert (stage["prompts_per_step"], stage["missing_eos_penalty"]) == (32, 1.0)
    assert stage["sampler"] == {"name": "cached", "max_new_tokens": 48, "temperature": 0.9, "top_p": 0.9}
    assert stage["rewards"][0] == {"name": "classifier", "model": "some/reward-model", "weight": 1.0}
    assert conversion.data["model"]["max_length"] == 256
    assert not any("left out" in text for _, text in conversion.notes)
    load(conversion.data, plugins=registry)


def test_a_plain_dpo_is_not_taken_for_an_online_one(made):
    text = "model_name_or_path: m\ndataset_name: d/d\nbeta: 0.1\nloss_type: sigmoid\n"
    assert only_stage(made(text))["method"] == "dpo"
    assert only_stage(made(text, name="my-online-dpo.yaml"))["algorithm"]["name"] == "online_dpo"


def test_ppo(made, registry):
    conversion = made(PPO)
    stage, notes = only_stage(conversion), notes_of(conversion)
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
    assert conversion.data["model"]["path"] == "me/pythia-160m-sft" and "sft_model_path" in notes
    load(conversion.data, plugins=registry)


@pytest.mark.parametrize(
    ("more", "estimator", "noted"),
    [
        ("beta: 0.04\n", "k2", True),
        ("beta: 0.04\nuse_bias_correction_kl: true\n", "k2", True),
        ("beta: 0.04\nuse_bias_correction_kl: false\n", "k3", False),
        ("beta: 0.04\nloss_type: cispo\n", "k2", True),
        ("beta: 0.0\n", None, False),
    ],
)
def test_the_kl_has_the_gradient_of_trls(made, registry, more, estimator, noted):
    conversion = made(
        f"model_name_or_path: m\ndataset_name: d/d\nreward_funcs: accuracy_reward\n{more}", "grpo"
    )
    assert only_stage(conversion)["algorithm"].get("kl_estimator") == estimator
    assert ("use_bias_correction_kl" in notes_of(conversion)) is noted
    load(conversion.data, plugins=registry)


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
    conversion = made(text + "multi_objective_aggregation: normalize_then_sum\n")
    stage = only_stage(conversion)
    assert [entry["normalize"] for entry in stage["rewards"]] == ["group", "group"]
    assert stage["algorithm"]["scale_rewards"] == "batch" and "multi_objective_aggregation" in notes_of(
        conversion
    )
    load(conversion.data, plugins=registry)


@pytest.mark.parametrize("trainer", ONLINE)
def test_a_penalty_for_a_missing_end_is_kept(made, registry, trainer):
    conversion = made("model_name_or_path: m\ndataset_name: d/d\nmissing_eos_penalty: 0.5\n", trainer)
    assert only_stage(conversion)["missing_eos_penalty"] == 0.5
    assert "missing_eos_penalty" not in notes_of(conversion)
