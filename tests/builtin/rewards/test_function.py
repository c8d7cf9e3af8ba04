import asyncio
import dataclasses

import pytest

from rlhf_peft.builtin.rewards.function import FunctionOptions, FunctionReward
from rlhf_peft.kit.functions import function_reward
from rlhf_peft.plugin import RewardError

from .doubles import batch, score


def test_a_function_gets_trls_names_and_none_abstains():
    seen = {}

    def f(prompts, completions, completion_ids, answer, trainer_state, log_metric, log_extra, **rest):
        seen.update(rest, prompts=prompts, step=trainer_state.global_step)
        log_metric("share", 0.5)
        log_extra("answer", answer)
        return [1.0, None, float(len(completions[2]))]

    out = score(FunctionReward(FunctionOptions(), f, "f"), batch(columns={"answer": ["a", "b", "c"]}))
    assert out.row[0] == 1.0 and out.row[1].isnan() and out.row[2] == 2.0
    assert seen == {"prompts": ["p"] * 3, "step": 3}
    assert out.metrics == {"share": 0.5} and out.extra == {"answer": ["a", "b", "c"]}


def test_steps_are_counted_as_in_trl():
    """The first batch comes before any update; an evaluation comes after those that it follows."""
    seen = []

    def f(completions, trainer_state, **rest):
        seen.append(trainer_state.global_step)
        return [0.0] * len(completions)

    reward = FunctionReward(FunctionOptions(), f, "f")
    for step, updates in ((1, None), (2, None), (0, 0), (7, 7)):
        score(reward, dataclasses.replace(batch(), step=step, updates=updates))
    assert seen == [0, 1, 0, 7]


def test_an_async_function_is_awaited():
    async def f(completions, **_):
        await asyncio.sleep(0)
        return [0.5] * len(completions)

    reward = FunctionReward(FunctionOptions(), f, "f")
    assert reward.is_async and score(reward, batch()).row.tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda **_: [1.0], "gave 1 score for 3 completions"),
        (lambda **_: None, "returned None. Expected a list, a tuple or a one-dimensional array"),
        (lambda **_: ["x", 1, 2], "gave 'x' for row 0, which is not a finite number"),
        (lambda **_: [1, float("nan"), 2], "gave nan for row 1"),
        (lambda **_: [1, 2, float("inf")], "gave inf for row 2"),
        (lambda **_: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_a_bad_function_is_an_error_with_its_name(function, message):
    with pytest.raises(RewardError, match=f"reward f {message}"):
        score(FunctionReward(FunctionOptions(), function, "f"), batch())


def test_a_plugin_registers_a_function_by_a_factory_with_options():
    def polite(completions, **_):
        return [float("please" in text) for text in completions]

    factory = function_reward(polite)
    reward = factory(factory.Options())
    assert reward.name == "polite"
    assert score(reward, batch(completions=["please", "no"])).row.tolist() == [1.0, 0.0]
