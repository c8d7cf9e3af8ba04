import math

import pytest
import torch

from rlhf_peft.errors import RewardError, UsageError
from rlhf_peft.plugin import Scores
from rlhf_peft.recipe.schema import RewardEntry
from rlhf_peft.stages.rl.rewarding import Rewards, without_end
from tests.builtin.test_rewards import batch


class Fixed:
    roles, scope, timeout = (), "row", None

    def __init__(self, row, **more):
        self.row, self.more = row, more

    async def score(self, given):
        return Scores(row=torch.tensor(self.row), **self.more)


class FakeRegistry:
    def __init__(self, **rewards):
        self.rewards = rewards

    def make(self, kind, name, options):
        return self.rewards[name]


class NoHeads:
    roles = ("policy",)


def rewards(entries, **made):
    return Rewards(FakeRegistry(**made), [RewardEntry(name=n, weight=w) for n, w in entries], NoHeads())


def test_scores_are_the_weighted_sum_and_abstentions_count_nothing():
    nan = math.nan
    out = rewards([("a", 2.0), ("b", -1.0)], a=Fixed([1.0, nan, nan]), b=Fixed([3.0, 4.0, nan])).score(
        batch()
    )
    assert out.scores[:2].tolist() == [-1.0, -4.0] and out.scores[2].isnan()
    assert out.components["a"][0] == 1.0


def test_token_scores_and_metrics_are_kept_by_name():
    token = torch.ones(3, 3)
    out = rewards(
        [("a", 0.5)], a=Fixed([0.0] * 3, token=token, metrics={"m": 2.0}, extra={"e": [1, 2, 3]})
    ).score(batch())
    assert torch.equal(out.token_scores, 0.5 * token)
    assert out.metrics == {"rewards/a/m": 2.0} and out.extra == {"a/e": [1, 2, 3]}


@pytest.mark.parametrize("row", [[1.0], [1.0, math.inf, 0.0]])
def test_a_wrong_count_or_an_infinite_score_stops(row):
    with pytest.raises(RewardError, match="reward a gave"):
        rewards([("a", 1.0)], a=Fixed(row)).score(batch())


def test_a_reward_that_hangs_is_stopped():
    class Slow(Fixed):
        timeout = 0.05

        async def score(self, given):
            import asyncio

            await asyncio.sleep(5)

    with pytest.raises(RewardError, match=r"longer than 0\.05 s"):
        rewards([("a", 1.0)], a=Slow([0.0] * 3)).score(batch())


def test_learned_without_a_reward_model_is_refused_before_anything_runs():
    class Learned(Fixed):
        roles = ("reward",)

    with pytest.raises(UsageError, match="reward_model stage"):
        rewards([("a", 1.0)], a=Learned([0.0]))


def test_missing_eos_is_penalised_or_replaced():
    scores, finish = torch.tensor([2.0, 3.0]), ["eos", "length"]
    assert without_end(scores, finish, 1.5, None).tolist() == [2.0, 1.5]
    assert without_end(scores, finish, None, -1.0).tolist() == [2.0, -1.0]
    assert without_end(scores, finish, None, None).tolist() == [2.0, 3.0]
