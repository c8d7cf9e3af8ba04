"""The test doubles have the shapes of what they stand for."""

import torch

from rlhf_peft.plugin import (
    Rollout,
    SamplingParams,
)
from rlhf_peft.testing import (
    FakePolicy,
    make_requests,
    make_reward_batch,
    make_rollout,
)


def test_the_fake_policy_is_a_policy(tmp_path):
    import warnings

    policy, same_again, other = FakePolicy(), FakePolicy(), FakePolicy(seed=1)
    ids = torch.tensor([5, 6, 7, 8])
    assert torch.equal(policy.logps(ids), same_again.logps(ids))
    assert not torch.equal(policy.logps(ids), other.logps(ids))
    assert policy.decode([0, 2, 3, 1]) == "ab"
    policy.save_adapter(tmp_path / "a")
    from peft import PeftConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert PeftConfig.from_pretrained(tmp_path / "a").r == 2


def test_the_doubles_have_the_shapes_that_the_types_promise():
    asked = make_requests(7, per_group=3, params=SamplingParams(5))
    rollout = make_rollout(asked, empty=True)
    assert isinstance(rollout, Rollout) and rollout.group.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert int(rollout.completion_lengths.max()) <= 5 and rollout.completion_ids(6) == [1]
    assert rollout.finish[6] == "eos" and len(set(r.seed for r in asked)) == 7
    batch = make_reward_batch(["a", "bc"], columns={"x": [1, 2]}, conversational=True)
    assert batch.texts == ["a", "bc"] and batch.columns["x"] == [1, 2]
    assert batch.prompts[0][0]["role"] == "user" and len(batch) == 2
    width = int(batch.rollout.lengths.max())
    assert batch.logps["base"].shape == (2, width) and batch.heads["reward-1"].shape == (2,)
