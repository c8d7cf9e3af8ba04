"""A finished run, loaded again: the reference is what the policy began as, not the raw base."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml

from rlhf_peft.engine import POLICY, REFERENCE
from rlhf_peft.errors import RunFolderError, UsageError
from rlhf_peft.registry import Registry
from rlhf_peft.runs import Checkpoints, RunFolder
from rlhf_peft.trained import open_run
from rlhf_peft.trained.evaluate import evaluate
from rlhf_peft.trained.prompts import prompts_of


def logits(base, role):
    with torch.no_grad(), base.role(role, train=False):
        return base.lm(input_ids=torch.arange(4, 20)[None]).logits


def test_the_reference_is_the_policy_as_rl_began(trained):
    opened = open_run(trained)
    assert opened.rewards == ["reward-0", "reward-1"]
    reference_logits = logits(opened.base, REFERENCE)
    opened.base.roles.load(POLICY, str(Checkpoints(trained).folder / "sft-done" / "adapters" / "policy"))
    assert torch.equal(reference_logits, logits(opened.base, POLICY))
    assert not torch.equal(reference_logits, logits(opened.base, "base"))


def test_a_run_without_adapters_is_refused(tmp_path):
    from rlhf_peft.recipe import dump, load

    run = RunFolder.create(tmp_path, "r")
    run.write_recipe(dump(load("quickstart")))
    run.release()
    with pytest.raises(RunFolderError, match="has no adapter yet"):
        open_run(run.path)


def test_prompts_are_those_that_were_held_out_or_those_that_were_not(trained):
    opened, registry = open_run(trained), Registry.load(no_plugins=True)
    stage = opened.recipe.stages[-1]
    dataset = stage.dataset.model_copy(update={"eval_fraction": 0.25})
    own = stage.model_copy(
        update={"dataset": dataset, "eval": stage.eval.model_copy(update={"dataset": None})}
    )
    recipe = opened.recipe.model_copy(update={"stages": [*opened.recipe.stages[:-1], own]})
    opened = replace(opened, recipe=recipe)
    held_out, used = (
        [prompt.index for prompt in prompts_of(opened, registry, what="test", held_out=held_out)]
        for held_out in (True, False)
    )
    assert len(held_out) == 6 and len(used) == 18 and sorted([*held_out, *used]) == list(range(24))
    mixed = [
        prompt.index
        for prompt in prompts_of(opened, registry, what="test", shuffle=3, held_out=False, size=9)
    ]
    assert len(mixed) == 9 and set(mixed) <= set(used) and mixed != used[:9]
    only = replace(opened, recipe=recipe.model_copy(update={"stages": recipe.stages[:1]}))
    with pytest.raises(UsageError, match="has no RL stage that names prompts"):
        prompts_of(only, registry, what="test")


def copied(trained, tmp_path, *removed, **manifest):
    """The run again, without some of its files."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    for name in removed:
        shutil.rmtree(folder / name)
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **manifest}))
    return folder


def test_without_the_checkpoint_there_is_no_reference_rather_than_a_wrong_one(trained, tmp_path):
    opened = open_run(copied(trained, tmp_path, "checkpoints"))
    assert "reference" not in opened.base.roles.names and "reward_model-done" in opened.no_reference
    opened.need(reference=False)
    with pytest.raises(RunFolderError, match="what the policy began as cannot be loaded"):
        evaluate(opened, Registry.load(no_plugins=True))


def test_a_run_that_was_stopped_is_what_its_finished_stages_are(trained, tmp_path, caplog):
    folder = copied(trained, tmp_path, stages_done=["sft", "reward_model"], status="stopped")
    opened = open_run(folder)
    assert "rl not finished" in caplog.text
    # SFT began as the base itself.
    assert torch.equal(logits(opened.base, REFERENCE), logits(opened.base, "base"))


def test_a_reward_model_that_was_taken_from_elsewhere_is_found_again(trained, tmp_path):
    folder = copied(trained, tmp_path)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["stages"] = [recipe["stages"][0], {**recipe["stages"][2], "init": {"reward": str(trained)}}]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name in ("reward-0", "reward-1"):
        shutil.rmtree(folder / "adapters" / name)
    for kept in (folder / "checkpoints" / "rl-done", None):
        opened = open_run(folder)
        assert opened.rewards == ["reward-0", "reward-1"]
        if kept is not None:
            shutil.rmtree(kept)


def test_a_run_of_reward_models_has_no_policy_to_ask(trained, tmp_path):
    folder = copied(trained, tmp_path, "adapters/policy")
    opened = open_run(folder)
    for ask in (opened.need, lambda: evaluate(opened, Registry.load(no_plugins=True))):
        with pytest.raises(UsageError, match="has trained no policy, only reward-0, reward-1"):
            ask()


def test_prompts_that_were_trained_on_are_called_so(trained, caplog):
    opened = open_run(trained)
    stage = opened.recipe.stages[-1]
    none = stage.model_copy(update={"eval": stage.eval.model_copy(update={"dataset": None})})
    recipe = opened.recipe.model_copy(update={"stages": [*opened.recipe.stages[:-1], none]})
    prompts_of(replace(opened, recipe=recipe), Registry.load(no_plugins=True), what="test", size=2)
    assert "these prompts were trained on" in caplog.text
