"""Configurations of TRL's SFT, reward, DPO and KTO trainers become recipes; nothing is lost in silence."""

from rlhf_peft.recipe import load
from rlhf_peft.recipe.trl.config import DEFAULTS

from .support import DPO, notes_of, only_stage

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


def test_dpo(made, registry):
    conversion = made(DPO)
    stage = only_stage(conversion)
    assert conversion.data["lora"] == {
        "r": 32,
        "alpha": 16,
        "dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": False,
    }
    assert conversion.data["model"]["quantization"] == {"name": "nf4", "double_quantization": True}
    assert conversion.data["model"]["gradient_checkpointing"] is False
    assert conversion.data["model"]["max_length"] == 1024
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
    assert set(notes_of(conversion)) == {"output_dir", "max_length"}
    load(conversion.data, plugins=registry)


def test_sft_from_json(made, registry):
    conversion = made(SFT, name="config.json")
    stage = only_stage(conversion)
    assert conversion.data["name"] == "sft-one"
    assert conversion.data["model"]["quantization"] == "int8"
    assert conversion.data["model"]["max_length"] == 2048
    assert conversion.data["lora"]["target_modules"] == "all-linear"
    assert stage["packing"] is True
    assert stage["dataset"]["columns"] == {"text": "content"}
    assert stage["learning_rate"] == DEFAULTS["sft"]["learning_rate"] == 2e-5
    assert "use_liger_kernel" in notes_of(conversion)
    load(conversion.data, plugins=registry)


def test_reward(made, registry):
    conversion = made(REWARD)
    stage = only_stage(conversion)
    assert stage["stage"] == "reward_model"
    assert stage["center_rewards_coefficient"] == 0.01
    assert stage["normalize"] == "none"
    assert stage["num_train_epochs"] == 3
    load(conversion.data, plugins=registry)


def test_kto(made, registry):
    conversion = made(KTO)
    stage, notes = only_stage(conversion), notes_of(conversion)
    assert stage["dataset"]["path"] == "trl-lib/kto-mix-14k"
    assert stage["dataset"]["split"] == "train[:50%]"
    assert (stage["method"], stage["desirable_weight"], stage["undesirable_weight"]) == ("kto", 1.33, 1.0)
    assert "another method" in notes["loss_type"]
    assert "1 more" in notes["datasets"]
    load(conversion.data, plugins=registry)


def test_adamws_coefficients_are_kept(made, registry):
    """Where they are the usual ones they are not written."""
    given = {"adam_epsilon": 1.0e-6, "adam_beta1": 0.9, "adam_beta2": 0.95}
    conversion = made(DPO + "".join(f"{key}: {value}\n" for key, value in given.items()))
    stage = only_stage(conversion)
    assert stage["adam_epsilon"] == 1e-6 and stage["adam_beta2"] == 0.95 and "adam_beta1" not in stage
    assert not set(given) & set(notes_of(conversion))
    load(conversion.data, plugins=registry)
