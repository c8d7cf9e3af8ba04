"""An update of every family of algorithms and stages on a card, its optimizers, and a run that is resumed."""

import math

import pytest
import torch
from safetensors.torch import load_file

from rlhf_peft.stages.rl import loop
from tests.dryrun.cases import CASES, other, rl, write_files
from tests.gpu.support import run

pytestmark = pytest.mark.gpu
GRPO = {"name": "grpo", "num_generations": 3}


def after_a_reward_model(folder):
    """PPO whose value head stands on the trunk of a reward model."""
    recipe = other("pairs", stage="reward_model")(folder)
    ppo = rl({"name": "ppo", "value": "reward", "num_epochs": 1}, rewards=[{"name": "learned"}])(folder)
    return {**recipe, "stages": [*recipe["stages"], *ppo["stages"]]}


MORE = {
    "reward model, then ppo with the value on its trunk": after_a_reward_model,
    "grpo, 8-bit, paged": rl(GRPO, optimizer="paged_adamw_8bit"),
    "reward model, float16": other("pairs", {"compute_dtype": "float16"}, stage="reward_model"),
    "sft, float16": other("answers", {"compute_dtype": "float16"}, stage="sft"),
}
RECIPES = {**CASES, **MORE}


def document(case, folder, model):
    """A recipe on a model with weights."""
    write_files(folder)
    made = case(folder)
    made["model"]["path"] = str(model)
    return made


def needs_a_card(recipe):
    return any("8bit" in stage.get("optimizer", "") for stage in recipe["stages"])


@pytest.mark.parametrize("name", RECIPES)
def test_updates(name, device, tmp_path, model_of, write_down):
    recipe = document(RECIPES[name], tmp_path, model_of(num_hidden_layers=2))
    if device.type == "cpu" and needs_a_card(recipe):
        pytest.skip("8-bit optimizers need a card")
    folder, steps = run(recipe, device)
    last = steps[-1]
    assert all(math.isfinite(step[key]) for step in steps for key in ("loss", "grad_norm") if key in step)
    assert not any(step.get("updates/skipped", 0.0) for step in steps)
    learnt = list((folder / "adapters").glob("*/adapter_model.safetensors"))
    assert learnt and all(
        any(bool(weight.any()) for key, weight in load_file(file).items() if "lora_B" in key)
        for file in learnt
    )
    keys = ("loss", "grad_norm", "step_time", "sampling/sampling_logp_difference/mean", "approx_kl")
    write_down(**{key: last[key] for key in keys if key in last})


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    optimizer, device, tmp_path, model_of, monkeypatch, write_down
):
    """The same numbers would be best; on a card sums may be added in another order, so the direction counts."""
    case = rl(GRPO, max_steps=3, optimizer=optimizer, checkpoint={"every": 1, "keep": 3}, learning_rate=1e-3)
    recipe = document(case, tmp_path, model_of(num_hidden_layers=2))
    if device.type == "cpu" and needs_a_card(recipe):
        pytest.skip("8-bit optimizers need a card")
    whole, steps = adapter(run(recipe, device)[0]), loop.train_step

    def interrupted(parts, number):
        if number == 3:
            raise KeyboardInterrupt
        return steps(parts, number)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, device)
    monkeypatch.setattr(loop, "train_step", steps)
    resumed = adapter(run(recipe, device, resume=True)[0])
    cosine = float(torch.cosine_similarity(whole, resumed, dim=0))
    write_down(same_numbers=torch.equal(whole, resumed), cosine=cosine)
    assert cosine > 0.98


def adapter(folder):
    """All that the policy's adapter has learnt."""
    weights = load_file(folder / "adapters" / "policy" / "adapter_model.safetensors")
    return torch.cat([weight.flatten().double() for key, weight in weights.items() if "lora_B" in key])
