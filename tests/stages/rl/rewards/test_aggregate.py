"""The stage's rule for completions that did not end."""

import torch

from rlhf_peft.stages.rl.rewards.aggregate import without_end


def test_missing_eos_is_penalised_or_replaced():
    scores, finish = torch.tensor([2.0, 3.0]), ["eos", "length"]
    assert without_end(scores, finish, 1.5, None).tolist() == [2.0, 1.5]
    assert without_end(scores, finish, None, -1.0).tolist() == [2.0, -1.0]
    assert without_end(scores, finish, None, None).tolist() == [2.0, 3.0]
