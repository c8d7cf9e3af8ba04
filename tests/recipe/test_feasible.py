"""Settings that cannot work here are refused before anything is loaded."""

import pytest
import torch

from rlhf_peft.cli import execute
from rlhf_peft.errors import RecipeError
from rlhf_peft.recipe import check_settings, load


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_an_optimizer_that_needs_a_gpu(recipe_file, without_gpu, optimizer):
    recipe = load(recipe_file, [f"stages.sft.optimizer={optimizer}", f"stages.rl.optimizer={optimizer}"])
    with pytest.raises(RecipeError, match=r"stages\.sft\.optimizer: .*CUDA GPU") as caught:
        check_settings(recipe)
    assert [problem.key for problem in caught.value.problems] == [
        "stages.sft.optimizer",
        "stages.rl.optimizer",
    ]
    check_settings(recipe, here=False)


@pytest.mark.parametrize("verb", ["validate", "plan", "run"])
def test_each_verb_says_so(tmp_path, monkeypatch, capsys, without_gpu, verb):
    monkeypatch.chdir(tmp_path)
    assert execute([verb, "quickstart", "stages.rl.optimizer=adamw_8bit"]) == 2
    assert "stages.rl.optimizer: adamw_8bit needs a CUDA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_plan_for_another_card_takes_it(capsys, without_gpu):
    assert execute(["plan", "quickstart", "--gpu", "12GB", "stages.rl.optimizer=adamw_8bit"]) in (0, 1)
    assert "CUDA" not in capsys.readouterr().err


@pytest.mark.parametrize("key", ["max_new_tokens", "of"])
def test_no_room_for_a_prompt(recipe_file, key):
    sampler = {"name": "cached", "max_new_tokens": 64}
    if key == "of":
        sampler = {"name": "best_of_n", "of": sampler}
    recipe = load(recipe_file, ["model.max_length=64", f"stages.rl.sampler={sampler}"])
    with pytest.raises(RecipeError, match=r"64 leaves no room for a prompt in model\.max_length, 64"):
        check_settings(recipe)
    check_settings(load(recipe_file, ["model.max_length=65", f"stages.rl.sampler={sampler}"]))


@pytest.mark.parametrize("key", ["name", "stages.sft.name"])
def test_a_name_that_no_folder_can_have(recipe_file, key):
    load(recipe_file, [f"{key}={'a' * 100}"])
    with pytest.raises(RecipeError, match="a name of 300 characters"):
        load(recipe_file, [f"{key}={'a' * 300}"])
