"""A finished run, loaded again: the reference is what the policy began as, not the raw base."""

import pytest
import torch

from rlhf_peft.engine import POLICY, REFERENCE
from rlhf_peft.errors import RunFolderError
from rlhf_peft.runs import Checkpoints, RunFolder
from rlhf_peft.trained import open_run


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
