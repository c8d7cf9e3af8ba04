"""A finished run, loaded again: the reference is what the policy began as, not the raw base."""

from dataclasses import replace

import pytest
import torch

from rlhf_peft.engine import POLICY, REFERENCE
from rlhf_peft.errors import RunFolderError, UsageError
from rlhf_peft.registry import Registry
from rlhf_peft.runs import Checkpoints, RunFolder
from rlhf_peft.trained import open_run
from rlhf_peft.trained.prompts import prompts_of


def logits(base, role):
    with torch.no_grad(), base.role(role, train=False):
        return base.lm(input_ids=torch.arange(4, 20)[None]).logits


def test_the_reference_is_the_policy_as_rl_began(trained):
    opened = open_run(trained)
    assert opened.rewards == ["reward-0", "reward-1"]
    found = logits(opened.base, REFERENCE)
    opened.base.load_role(POLICY, str(Checkpoints(trained).folder / "sft-done" / "adapters" / "policy"))
    assert torch.equal(found, logits(opened.base, POLICY))
    assert not torch.equal(found, logits(opened.base, "base"))


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
    held, used = (
        [prompt.index for prompt in prompts_of(opened, registry, what="test", held_out=held)]
        for held in (True, False)
    )
    assert len(held) == 6 and len(used) == 18 and sorted([*held, *used]) == list(range(24))
    mixed = [
        prompt.index
        for prompt in prompts_of(opened, registry, what="test", shuffle=3, held_out=False, size=9)
    ]
    assert len(mixed) == 9 and set(mixed) <= set(used) and mixed != used[:9]
    only = replace(opened, recipe=recipe.model_copy(update={"stages": recipe.stages[:1]}))
    with pytest.raises(UsageError, match="has no RL stage that names prompts"):
        prompts_of(only, registry, what="test")
