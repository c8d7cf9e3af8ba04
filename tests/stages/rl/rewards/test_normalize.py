"""Clipping and normalisation of each reward, by hand and beside TRL's own code."""

import inspect
import math
import textwrap
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from rlhf_peft import maths
from rlhf_peft.stages.rl.rewards.aggregate import add_up
from rlhf_peft.stages.rl.rewards.normalize import Moments, RewardNormalizer, per_group, standardize
from rlhf_peft.types import Scores

from .reward_doubles import Fixed, answers, rewards

nan = math.nan
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


def test_clip_comes_first_and_leaves_abstentions():
    out = RewardNormalizer((-1.0, 1.0), "none").apply(torch.tensor([-5.0, nan, 0.5]), torch.zeros(3))
    assert out[0] == -1.0 and out[1].isnan() and out[2] == 0.5


# --- beside TRL ---

WEIGHTS = torch.tensor([1.0, 0.5])


def trls_advantages(scores, generations):
    """The very lines of `GRPOTrainer` for `multi_objective_aggregation="normalize_then_sum"`."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    _, _, after = source.partition('elif self.multi_objective_aggregation == "normalize_then_sum":\n')
    lines = after.partition("\n        else:\n")[0]
    names = {
        **vars(grpo_trainer),
        "self": SimpleNamespace(reward_funcs=[0, 1], reward_weights=WEIGHTS),
        "rewards_per_func": scores,
        "num_generations": generations,
        "unscorable_mask": scores.isnan().all(1),
        "device": "cpu",
    }
    exec(textwrap.dedent(lines), names)
    return names["advantages"].nan_to_num(0.0)


@pytest.mark.parametrize("spread", [1.0, 0.01])
@pytest.mark.parametrize("abstaining", [0.0, 0.3])
def test_groups_normalised_apart_and_scaled_by_the_batch_are_trls_gdpo(spread, abstaining):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(24, 2, generator=generator) * spread
    scores[torch.rand(24, 2, generator=generator) < abstaining] = torch.nan
    group = torch.arange(24) // 4
    made = rewards(
        {"a": {"normalize": "group"}, "b": {"normalize": "group", "weight": 0.5}}, a=Fixed([]), b=Fixed([])
    )
    rows, _ = answers(n=24, group=group.tolist())
    add_up(made._bound, rows, {"a": Scores(row=scores[:, 0]), "b": Scores(row=scores[:, 1])})
    mine = maths.group_advantages(rows.scores, group, "batch")
    torch.testing.assert_close(mine, trls_advantages(scores, 4), atol=1e-5, rtol=0)
