import pytest

from rlhf_peft import api
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
