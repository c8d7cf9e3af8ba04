"""Rewards of a stage: their sum, what each of them sees, their failures and their advice."""

import logging
import math
import time

import pytest
import torch

from rlhf_peft.errors import RewardError, UsageError
from rlhf_peft.recipe import load
from rlhf_peft.recipe.schema import RewardEntry
from rlhf_peft.stages.rl.rewards.rewards import Rewards

from .reward_doubles import Base, FakeRegistry, Fixed, begin, function, rewards, scored

nan = math.nan


def test_scores_are_the_weighted_sum_and_abstentions_count_nothing():
    entries = {"a": {"weight": 2.0}, "b": {"weight": -1.0}}
    out = scored(rewards(entries, a=Fixed([1.0, nan, nan]), b=Fixed([3.0, 4.0, nan])))
    assert out.scores[:2].tolist() == [-1.0, -4.0] and out.scores[2].isnan()
    assert out.components["a"][0] == 1.0
    assert out.metrics == pytest.approx({"rewards/a/abstained": 2 / 3, "rewards/b/abstained": 1 / 3})


def test_a_reward_that_is_only_measured_does_not_stand_in_for_one_that_abstains():
    out = scored(rewards({"a": {}, "b": {"weight": 0.0}}, a=Fixed([1.0, nan]), b=Fixed([3.0, 4.0])), n=2)
    assert out.scores[0] == 1.0 and out.scores[1].isnan()


def test_token_scores_and_metrics_are_kept_by_name():
    token = torch.ones(3, 3)
    reward = Fixed([0.0] * 3, token=token, metrics={"m": 2.0}, extra={"e": [1, 2, 3]})
    out = scored(rewards({"a": {"weight": 0.5, "clip": (0.0, 0.1)}}, a=reward))
    assert torch.equal(out.token_scores, 0.5 * token)
    assert out.metrics == {"rewards/a/m": 2.0} and out.extra == {"a/e": [1, 2, 3]}


def test_components_are_raw_and_the_sum_is_clipped_normalised_weighted():
    keys = {"clip": (0.0, 4.0), "normalize": "batch", "weight": 3.0}
    out = scored(rewards({"a": keys}, a=Fixed([-9.0, 2.0, 99.0])))
    assert out.components["a"].tolist() == [-9.0, 2.0, 99.0]
    assert out.scores.tolist() == pytest.approx([-3 * 1.5**0.5, 0.0, 3 * 1.5**0.5])


@pytest.mark.parametrize(
    ("row", "more", "message"),
    [
        ([1.0], {}, "gave 1 score for 3 completions at rl step 4"),
        ([[1.0], [1.0], [1.0]], {}, r"returned a Tensor of shape \(3, 1\) as scores"),
        ([1.0, math.inf, 0.0], {}, "gave an infinite score for row 1 at rl step 4"),
        ([1.0] * 3, {"token": torch.ones(3, 2)}, r"token scores of shape \(3, 2\) where \(3, 3\)"),
        ([1.0] * 3, {"token": torch.full((3, 3), nan)}, "token score for row 0"),
        ([1.0] * 3, {"extra": {"e": [1]}}, "1 values of extra e for 3"),
    ],
)
def test_what_is_no_score_stops_with_name_distribution_and_step(row, more, message):
    with pytest.raises(RewardError, match=rf"reward a \(a-plugin 0\.3\.1\) .*{message}"):
        scored(rewards({"a": {}}, a=Fixed(row, **more)))


def test_the_message_names_the_datasets_row_and_what_to_type():
    made = rewards({"a": {}}, a=Fixed([1.0]))
    with pytest.raises(RewardError) as told:
        scored(made, dataset_rows=[2112, 5, 6])
    assert str(told.value) == (
        "reward a (a-plugin 0.3.1) gave 1 score for 3 completions at rl step 4. First prompt of the batch: dataset "
        "row 2,113. Mend it, or let it abstain from such a batch: stages.rl.rewards.a.on_error=abstain"
    )
    with pytest.raises(RewardError, match="Prompt of row 1: dataset row 6"):
        scored(rewards({"a": {}}, a=Fixed([1.0, math.inf, 1.0])), dataset_rows=[2112, 5, 6])
    with pytest.raises(RewardError, match="First prompt of the batch: 'p'"):
        scored(made)


class Raises(Fixed):
    async def score(self, given):
        raise KeyError("nothing")


def test_a_reward_that_fails_may_abstain_but_never_counts_as_0(caplog):
    logging.getLogger("rlhf_peft").propagate = True
    made = rewards({"a": {"on_error": "abstain"}, "b": {}}, a=Raises([]), b=Fixed([1.0] * 3))
    with caplog.at_level("WARNING", "rlhf_peft.rewards"):
        out = scored(made)
    assert out.components["a"].isnan().all() and out.scores.tolist() == [1.0] * 3
    assert out.metrics == {"rewards/a/failed": 1.0, "rewards/a/abstained": 1.0}
    assert "raised KeyError: 'nothing'" in caplog.text and "abstains from this batch" in caplog.text
    alone = scored(rewards({"a": {"on_error": "abstain"}}, a=Raises([])))
    assert alone.scores.isnan().all()


class Slow(Fixed):
    timeout = 30.0

    async def score(self, given):
        import asyncio

        await asyncio.sleep(5)


def test_an_async_reward_that_hangs_is_stopped_by_its_entrys_timeout():
    with pytest.raises(
        RewardError, match=r"longer than 0\.05 s at rl step 4.*Raise stages\.rl\.rewards\.a\.timeout"
    ):
        scored(rewards({"a": {"timeout": 0.05}}, a=Slow([0.0] * 3)))


def test_the_first_error_does_not_wait_for_the_others():
    begun = time.monotonic()
    with pytest.raises(RewardError, match="reward b"):
        scored(rewards({"a": {}, "b": {}}, a=Slow([]), b=Raises([])))
    assert time.monotonic() - begun < 2


def test_learned_without_a_reward_model_is_refused_before_anything_runs():
    class Learned(Fixed):
        roles = ("reward",)

    with pytest.raises(UsageError, match="reward_model stage"):
        rewards({"a": {}}, a=Learned([0.0]))


def test_one_reward_twice_is_refused():
    with pytest.raises(UsageError, match="listed twice"):
        Rewards(FakeRegistry({"a": Fixed([])}), [RewardEntry(name="a")] * 2, Base())


class Sees(Fixed):
    def __init__(self, *roles):
        self.roles, self.seen = roles, None

    async def score(self, given):
        self.seen = given
        return await Fixed([0.0] * len(given)).score(given)


def test_each_reward_sees_its_own_roles_only_and_those_that_need_none_begin_at_once():
    a, b, c = Sees("reward"), Sees("base"), Sees()
    made = rewards({"a": {}, "b": {}, "c": {}}, Base("policy", "reward-0", "reward-1"), a=a, b=b, c=c)
    assert made.heads == ("reward-0", "reward-1") and made.logp_roles == ("base",)
    pending = begin(made)
    pending.futures["c"].result(5)
    assert set(pending.futures) == {"c"} and a.seen is None
    pending.batch.heads = {role: torch.zeros(3) for role in (*made.heads, "other")}
    pending.batch.role_logps = {"base": torch.ones(3, 3), "reference": torch.ones(3, 3)}
    made.finish(pending)
    assert set(a.seen.heads) == {"reward-0", "reward-1"} and not a.seen.logps
    assert set(b.seen.logps) == {"base"} and not b.seen.heads
    made.close()


def test_draws_do_not_depend_on_what_ends_first():
    class Draws(Sees):
        async def score(self, given):
            self.drawn = float(torch.rand((), generator=given.generator))
            return await super().score(given)

    drawn = []
    for _ in range(2):
        a, b = Draws(), Draws()
        scored(rewards({"a": {}, "b": {}}, a=a, b=b))
        drawn.append((a.drawn, b.drawn))
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1]


def test_clients_live_on_one_loop_and_are_closed():
    import asyncio

    class Client(Fixed):
        def __init__(self, row):
            super().__init__(row)
            self.loops, self.closed = [], False

        async def score(self, given):
            self.loops.append(asyncio.get_running_loop())
            return await super().score(given)

        async def close(self):
            self.closed = asyncio.get_running_loop() is self.loops[0]

    client = Client([0.0] * 3)
    made = rewards({"a": {}}, a=client)
    scored(made)
    scored(made)
    made.close()
    made.close()
    assert len({id(loop) for loop in client.loops}) == 1 and client.closed


def test_an_async_reward_that_never_awaits_is_found_out(monkeypatch):
    from rlhf_peft.stages.rl.rewards import event_loop
    from rlhf_peft.stages.rl.rewards import rewards as rewarding

    monkeypatch.setattr(rewarding, "GRACE", 0.1)
    monkeypatch.setattr(rewarding, "PATIENCE", 0.1)
    monkeypatch.setattr(event_loop, "PATIENCE", 3.0)

    class Blocks(Fixed):
        async def score(self, given):
            time.sleep(1.5)

    made, begun = rewards({"a": {"timeout": 0.1}}, a=Blocks([])), time.monotonic()
    with pytest.raises(RewardError, match=r"reward a \(a-plugin 0\.3\.1\) never gives way"):
        scored(made)
    assert time.monotonic() - begun < 1.4
    made.close()


def test_running_normalisation_goes_on_from_its_state():
    one, two = ({"a": {"normalize": "running"}} for _ in range(2))
    first = rewards(one, a=Fixed([1.0, 2.0, 6.0]))
    assert scored(first).scores.sum().item() == pytest.approx(0, abs=1e-6)
    again = rewards(two, a=Fixed([1.0, 2.0, 6.0]))
    again.load_state_dict(first.state_dict())
    again_scores = scored(again).scores
    assert torch.equal(again_scores, scored(first).scores)
    assert again.state_dict() == first.state_dict()
    assert again.state_dict()["scale"]["a"]["count"] == 6


def test_a_function_that_gives_none_abstains():
    made = rewards({"f": {"in_process": True}}, f=function(lambda **_: [None, 1.0, 2.0]))
    assert scored(made).scores.isnan().tolist() == [True, False, False]


def advised(error):
    """The keys that a message tells the user to set."""
    return [word.rstrip(".,") for word in str(error).split() if word.startswith("stages.")]


def test_advice_on_a_reward_that_is_only_measured_can_be_typed(tmp_path):
    made = Rewards(
        FakeRegistry({"a": Fixed([0.0] * 3), "b": Slow([])}),
        [RewardEntry(name="a")],
        Base(),
        measured=[RewardEntry(name="b", timeout=0.05)],
    )
    with pytest.raises(RewardError) as caught:
        scored(made)
    keys = advised(caught.value)
    assert keys == ["stages.rl.eval.rewards.b.timeout", "stages.rl.eval.rewards.b.on_error=abstain"]
    stage = {
        "stage": "rl",
        "dataset": {"path": "x.jsonl"},
        "algorithm": {"name": "ppo"},
        "sampler": {"name": "cached"},
        "rewards": [{"name": "a"}],
        "eval": {"rewards": [{"name": "b"}]},
    }
    recipe = load(
        {"version": 1, "name": "r", "model": {"path": "m"}, "stages": [stage]}, [f"{keys[0]}=9", keys[1]]
    )
    assert (recipe.stages[0].eval.rewards[0].timeout, recipe.stages[0].eval.rewards[0].on_error) == (
        9,
        "abstain",
    )


def test_advice_of_eval_is_for_its_own_option():
    made = Rewards(FakeRegistry({"a": Raises([])}), [RewardEntry(name="a")], Base(), reachable=False)
    with pytest.raises(RewardError, match=r"on_error: abstain in --rewards") as caught:
        scored(made)
    assert not advised(caught.value)
