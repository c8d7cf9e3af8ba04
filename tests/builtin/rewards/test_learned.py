import pytest
import torch

from rlhf_peft.builtin.rewards.learned import LearnedOptions, LearnedReward, reduce_heads
from rlhf_peft.plugin import RewardError

from .doubles import batch, score


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", [2.0, 0.0]), ("min", [1.0, -1.0]), ("mean-std", [2.0 - 2.0, 0.0 - 2.0])]
)
def test_ensembles_by_hand(how, expected):
    heads = torch.tensor([[1.0, -1.0], [3.0, 1.0], [2.0, 0.0]])
    assert reduce_heads(heads, how, k=2.0).tolist() == pytest.approx(expected)


def test_learned_reads_its_heads_and_logs_their_disagreement():
    heads = {"reward-0": torch.tensor([1.0, 2.0, 3.0]), "reward-1": torch.tensor([3.0, 2.0, 1.0])}
    out = score(LearnedReward(LearnedOptions()), batch(heads=heads))
    assert out.row.tolist() == [2.0, 2.0, 2.0]
    assert out.metrics["disagreement"] == pytest.approx((2**0.5 + 0 + 2**0.5) / 3)


def test_learned_without_a_head_says_what_to_do():
    with pytest.raises(RewardError, match=r"init\.reward"):
        score(LearnedReward(LearnedOptions()), batch())
