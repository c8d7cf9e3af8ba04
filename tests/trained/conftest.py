import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from rlhf_peft import api
from rlhf_peft.engine import BaseSpec
from rlhf_peft.engine.base_spec import quiet
from rlhf_peft.recipe import load
from rlhf_peft.registry import Registry

TINY = {"name": "tiny", "size": 24}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run with a policy, a reference that is not the raw base, and two reward heads."""
    folder = tmp_path_factory.mktemp("trained")
    stages = [
        {
            "stage": "sft",
            "dataset": {**TINY, "part": "demonstrations"},
            "batch_size": 8,
            "max_steps": 3,
            "learning_rate": 3e-3,
        },
        {
            "stage": "reward_model",
            "dataset": {**TINY, "part": "preferences"},
            "batch_size": 8,
            "max_steps": 3,
            "ensemble": 2,
            "normalize": "standardize",
            "eval": {"dataset": {**TINY, "part": "preferences", "questions": "test", "size": 12}},
        },
        {
            "stage": "rl",
            "dataset": {**TINY, "part": "prompts"},
            "algorithm": {"name": "grpo", "num_generations": 4},
            "sampler": {"name": "cached", "max_new_tokens": 16},
            "rewards": [{"name": "learned"}, {"name": "tiny-gold", "weight": 0.5}],
            "prompts_per_step": 8,
            "learning_rate": 3e-3,
            "max_steps": 3,
            "eval": {"dataset": {**TINY, "part": "prompts", "questions": "test", "size": 8}},
        },
    ]
    recipe = load(
        {
            "version": 1,
            "name": "trained",
            "output_dir": str(folder),
            "device": "cpu",
            "model": {"path": "builtin:tiny", "max_length": 64},
            "lora": {"r": 4, "alpha": 8},
            "stages": stages,
        },
        (),
        plugins=Registry.load(no_plugins=True),
    )
    return api.run(recipe, registry=Registry.load(no_plugins=True)).folder


@pytest.fixture(scope="session")
def trained_on_stored_4bit(tmp_path_factory):
    """A run whose base is stored in 4 bits, with a policy and a reward head."""
    folder = tmp_path_factory.mktemp("stored")
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    tiny = BaseSpec("builtin:tiny").location
    with quiet():
        AutoModelForCausalLM.from_pretrained(tiny, quantization_config=how).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder / "base")
    common = {"batch_size": 8, "max_steps": 2, "learning_rate": 3e-3}
    stages = [
        {"stage": "sft", "dataset": {**TINY, "part": "demonstrations"}, **common},
        {"stage": "reward_model", "dataset": {**TINY, "part": "preferences"}, **common},
    ]
    recipe = load(
        {
            "version": 1,
            "name": "stored",
            "output_dir": str(folder),
            "device": "cpu",
            "model": {"path": str(folder / "base"), "max_length": 64, "quantization": "none"},
            "lora": {"r": 4, "alpha": 8},
            "stages": stages,
        },
        (),
        plugins=Registry.load(no_plugins=True),
    )
    return api.run(recipe, registry=Registry.load(no_plugins=True)).folder
