import logging
import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_peft.errors import RewardError, UsageError
from rlhf_peft.recipe import load
from rlhf_peft.recipe.schema import RewardEntry
from rlhf_peft.stages.rl.rewards.normalize import Moments, Scale, per_group, standardize
from rlhf_peft.stages.rl.rewards.rewards import Rewards, without_end
from tests.builtin.rewards.doubles import batch

from ..reward_doubles import Base, FakeRegistry, Fixed, function, rewards

nan = math.nan


def test_scores_are_the_weighted_sum_and_abstentions_count_nothing():
    entries = {"a": {"weight": 2.0}, "b": {"weight": -1.0}}
    out = rewards(entries, a=Fixed([1.0, nan, nan]), b=Fixed([3.0, 4.0, nan])).score(batch())
    assert out.scores[:2].tolist() == [-1.0, -4.0] and out.scores[2].isnan()
    assert out.components["a"][0] == 1.0
    assert out.metrics == pytest.approx({"rewards/a/abstained": 2 / 3, "rewards/b/abstained": 1 / 3})


def test_a_reward_that_is_only_measured_does_not_stand_in_for_one_that_abstains():
    out = rewards({"a": {}, "b": {"weight": 0.0}}, a=Fixed([1.0, nan]), b=Fixed([3.0, 4.0])).score(batch(2))
    assert out.scores[0] == 1.0 and out.scores[1].isnan()


def test_token_scores_and_metrics_are_kept_by_name():
    token = torch.ones(3, 3)
    reward = Fixed([0.0] * 3, token=token, metrics={"m": 2.0}, extra={"e": [1, 2, 3]})
    out = rewards({"a": {"weight": 0.5, "clip": (0.0, 0.1)}}, a=reward).score(batch())
    assert torch.equal(out.token_scores, 0.5 * token)
    assert out.metrics == {"rewards/a/m": 2.0} and out.extra == {"a/e": [1, 2, 3]}


def test_components_are_raw_and_the_sum_is_clipped_normalised_weighted():
    keys = {"clip": (0.0, 4.0), "normalize": "batch", "weight": 3.0}
    out = rewards({"a": keys}, a=Fixed([-9.0, 2.0, 99.0])).score(batch())
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
        rewards({"a": {}}, a=Fixed(row, **more)).score(batch())


def test_the_message_names_the_datasets_row_and_what_to_type():
    made = rewards({"a": {}}, a=Fixed([1.0]))
    with pytest.raises(RewardError) as told:
        made.score(batch(), rows=[2112, 5, 6])
    assert str(told.value) == (
        "reward a (a-plugin 0.3.1) gave 1 score for 3 completions at rl step 4. First prompt of the batch: dataset "
        "row 2,113. Mend it, or let it abstain from such a batch: stages.rl.rewards.a.on_error=abstain"
    )
    with pytest.raises(RewardError, match="Prompt of row 1: dataset row 6"):
        rewards({"a": {}}, a=Fixed([1.0, math.inf, 1.0])).score(batch(), rows=[2112, 5, 6])
    with pytest.raises(RewardError, match="First prompt of the batch: 'p'"):
        made.score(batch())


class Raises(Fixed):
    async def score(self, given):
        raise KeyError("nothing")


def test_a_reward_that_fails_may_abstain_but_never_counts_as_0(caplog):
    logging.getLogger("rlhf_peft").propagate = True
    made = rewards({"a": {"on_error": "abstain"}, "b": {}}, a=Raises([]), b=Fixed([1.0] * 3))
    with caplog.at_level("WARNING", "rlhf_peft.rewards"):
        out = made.score(batch())
    assert out.components["a"].isnan().all() and out.scores.tolist() == [1.0] * 3
    assert out.metrics == {"rewards/a/failed": 1.0, "rewards/a/abstained": 1.0}
    assert "raised KeyError: 'nothing'" in caplog.text and "abstains from this batch" in caplog.text
    alone = rewards({"a": {"on_error": "abstain"}}, a=Raises([])).score(batch())
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
        rewards({"a": {"timeout": 0.05}}, a=Slow([0.0] * 3)).score(batch())


def test_the_first_error_does_not_wait_for_the_others():
    begun = time.monotonic()
    with pytest.raises(RewardError, match="reward b"):
        rewards({"a": {}, "b": {}}, a=Slow([]), b=Raises([])).score(batch())
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
    pending = made.begin(batch())
    pending.futures["c"].result(5)
    assert set(pending.futures) == {"c"} and a.seen is None
    heads = {role: torch.zeros(3) for role in (*made.heads, "other")}
    made.finish(pending, heads, {"base": torch.ones(3, 3), "reference": torch.ones(3, 3)})
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
        rewards({"a": {}, "b": {}}, a=a, b=b).score(batch())
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
    made.score(batch())
    made.score(batch())
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
        made.score(batch())
    assert time.monotonic() - begun < 1.4
    made.close()


# --- scaling ---

numbers = st.floats(-1e4, 1e4, width=32)
rows = st.lists(st.one_of(numbers, st.just(nan)), min_size=1, max_size=12)


def check_standard(before, after):
    there = ~before.isnan()
    assert torch.equal(there, ~after.isnan())
    given, scaled = before[there].double(), after[there].double()
    if len(given) == 0:
        return
    if given.min() == given.max():
        assert (scaled == 0).all()
        return
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-3)
    assert float(scaled.square().mean()) == pytest.approx(1, abs=1e-3)
    assert torch.equal(given.argmax(), scaled.argmax()) or scaled.max() == scaled[given.argmax()]


@given(rows)
def test_standard_scores_have_mean_0_and_variance_1(values):
    scores = torch.tensor(values)
    check_standard(scores, standardize(scores))


@given(rows, st.integers(1, 4))
def test_groups_are_normalised_each_for_itself(values, groups):
    scores, group = torch.tensor(values), torch.arange(len(values)) % groups
    out = per_group(scores, group)
    assert bool((out.isnan() == scores.isnan()).all())
    for number in group.unique():
        there = scores[(group == number) & ~scores.isnan()]
        expected = (
            (there - there.mean()) / (there.std() + 1e-4) if len(there) > 1 else torch.zeros(len(there))
        )
        scaled = out[(group == number) & ~scores.isnan()]
        torch.testing.assert_close(scaled, expected, atol=1e-3, rtol=1e-3)


@given(st.lists(rows, min_size=1, max_size=5))
def test_running_moments_are_those_of_all_scores_so_far(batches):
    moments = Moments()
    for values in batches:
        moments.take(torch.tensor(values))
    everything = torch.tensor([v for values in batches for v in values if not math.isnan(v)]).double()
    assert moments.count == len(everything)
    if len(everything):
        assert moments.mean == pytest.approx(float(everything.mean()), abs=1e-6)
        assert moments.m2 == pytest.approx(
            float((everything - everything.mean()).square().sum()), rel=1e-6, abs=1e-3
        )


def test_running_normalisation_goes_on_from_its_state():
    one, two = ({"a": {"normalize": "running"}} for _ in range(2))
    first = rewards(one, a=Fixed([1.0, 2.0, 6.0]))
    assert first.score(batch()).scores.sum().item() == pytest.approx(0, abs=1e-6)
    again = rewards(two, a=Fixed([1.0, 2.0, 6.0]))
    again.load_state_dict(first.state_dict())
    again_scores = again.score(batch()).scores
    assert torch.equal(again_scores, first.score(batch()).scores)
    assert again.state_dict() == first.state_dict()
    assert again.state_dict()["scale"]["a"]["count"] == 6


def test_clip_comes_first_and_leaves_abstentions():
    out = Scale((-1.0, 1.0), "none")(torch.tensor([-5.0, nan, 0.5]), torch.zeros(3))
    assert out[0] == -1.0 and out[1].isnan() and out[2] == 0.5


# --- the stage's rule ---


def test_missing_eos_is_penalised_or_replaced():
    scores, finish = torch.tensor([2.0, 3.0]), ["eos", "length"]
    assert without_end(scores, finish, 1.5, None).tolist() == [2.0, 1.5]
    assert without_end(scores, finish, None, -1.0).tolist() == [2.0, -1.0]
    assert without_end(scores, finish, None, None).tolist() == [2.0, 3.0]


def test_a_function_that_gives_none_abstains():
    made = rewards({"f": {"in_process": True}}, f=function(lambda **_: [None, 1.0, 2.0]))
    assert made.score(batch()).scores.isnan().tolist() == [True, False, False]


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
        made.score(batch())
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
        made.score(batch())
    assert not advised(caught.value)
