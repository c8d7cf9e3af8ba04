"""CollapseGuard: the KL above its limit, and what has collapsed."""

import pytest

from rlhf_peft.errors import GuardError
from rlhf_peft.recipe.schema import RlStage
from rlhf_peft.stages.rl.collapse import CollapseGuard

from .support import run, stage

FINE = {"reward": 1.0, "reward_std": 0.5, "entropy": 2.0, "completions/mean_length": 20.0, "kl": 1.0}


def guards(**collapse):
    return CollapseGuard(RlStage.model_validate(stage(collapse={"steps": 3, **collapse})))


def test_a_kl_limit_stops_the_run(make_context):
    ctx = make_context(stage(kl_limit=1e-9, learning_rate=5e-3, max_steps=4))
    with pytest.raises(GuardError, match="kl_limit"):
        run(ctx)


COLLAPSED = [
    ({"reward_std": 0.0}, "every completion had the score 1; all scores of a prompt are equal"),
    ({"frac_reward_zero_std": 1.0}, "in no group did two completions have different scores"),
    ({"entropy": 0.19}, "entropy is 0.19, and was 2 in the first step; the policy draws almost the same"),
    ({"completions/mean_length": 1.0}, r"completions/mean_length is 1, and was 20 in the first step"),
    (
        {"completions/clipped_ratio": 1.0, "completions/max_length": 64.0},
        "every completion reached 64 tokens without an end; raise sampler.max_new_tokens",
    ),
]


@pytest.mark.parametrize(("figures", "told"), COLLAPSED)
def test_a_collapse_is_warned_of_once_each_time_that_it_begins(caplog, figures, told):
    look = guards()
    for step in range(1, 6):
        look.check(step, FINE if step < 2 else {**FINE, **figures})
    assert [record.message for record in caplog.records if told in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1 and "3 steps up to 4: " in caplog.text
    look.check(6, FINE)
    for step in range(7, 10):
        look.check(step, {**FINE, **figures})
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("figures", "told"), COLLAPSED)
def test_a_collapse_stops_the_run_where_the_recipe_says_so(figures, told):
    look = guards(action="stop")
    look.check(1, FINE)
    look.check(2, {**FINE, **figures})
    look.check(3, {**FINE, **figures})
    with pytest.raises(GuardError, match=f"{told}.*collapse.action=warn") as caught:
        look.check(4, {**FINE, **figures})
    assert caught.value.exit_code == 3


def test_what_was_seen_before_an_interruption_counts(caplog):
    first, second = guards(), guards()
    first.check(1, FINE)
    first.check(2, {**FINE, "entropy": 0.1})
    first.check(3, {**FINE, "entropy": 0.1})
    second.load_state_dict(first.state_dict())
    second.check(4, {**FINE, "entropy": 0.1})
    assert "entropy is 0.1" in caplog.text


def test_one_score_is_not_the_same_score_for_all(caplog):
    look = guards()
    for step in range(1, 9):
        look.check(step, {**FINE, "reward_std": 0.0, "rows": 1.0})
    assert not caplog.records


def test_nothing_is_said_where_shares_are_zero(caplog):
    look = guards(entropy=0.0, length=0.0)
    for step in range(1, 9):
        look.check(step, {**FINE, "entropy": 0.0 if step > 1 else 2.0, "completions/mean_length": 1.0})
    assert not caplog.records


def test_rewards_that_are_all_the_same_are_told_of_in_a_run(make_context, caplog):
    nothing = [{"name": "length", "target": 8, "weight": 0.0}]
    run(make_context(stage(max_steps=3, eval={}, collapse={"steps": 2}, rewards=nothing)))
    assert "rl, 2 steps up to 2: every completion had the score 0" in caplog.text
