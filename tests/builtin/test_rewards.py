import asyncio

import pytest
import torch

from rlhf_peft.builtin.rewards.function import FunctionOptions, FunctionReward
from rlhf_peft.builtin.rewards.learned import LearnedOptions, LearnedReward, reduce_heads
from rlhf_peft.plugin import RewardBatch, RewardError, Rollout


def batch(n=3, heads=None, columns=None, step=4):
    rollout = Rollout(
        [torch.arange(3)] * n,
        [torch.tensor([False, True, True])] * n,
        ["eos"] * n,
        torch.arange(n),
        ["sample"] * n,
        {},
    )
    return RewardBatch(
        prompts=["p"] * n,
        completions=[f"c{i}" for i in range(n)],
        completion_ids=[[1, 2]] * n,
        finish=["eos"] * n,
        columns={"prompt": ["p"] * n, **(columns or {})},
        rollout=rollout,
        heads=heads or {},
        step=step,
        generator=torch.Generator(),
    )


def score(reward, given):
    return asyncio.run(reward.score(given))


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


def test_a_function_gets_trls_names_and_none_abstains():
    seen = {}

    def f(prompts, completions, completion_ids, answer, trainer_state, log_metric, log_extra, **rest):
        seen.update(rest, prompts=prompts, step=trainer_state.global_step)
        log_metric("share", 0.5)
        log_extra("answer", answer)
        return [1.0, None, float(len(completions[2]))]

    out = score(FunctionReward(FunctionOptions(), f, "f"), batch(columns={"answer": ["a", "b", "c"]}))
    assert out.row[0] == 1.0 and out.row[1].isnan() and out.row[2] == 2.0
    assert seen == {"prompts": ["p"] * 3, "step": 4}
    assert out.metrics == {"share": 0.5} and out.extra == {"answer": ["a", "b", "c"]}


def test_an_async_function_is_awaited():
    async def f(completions, **_):
        await asyncio.sleep(0)
        return [0.5] * len(completions)

    assert score(FunctionReward(FunctionOptions(), f, "f"), batch()).row.tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda **_: [1.0], "gave 1 scores for 3 completions"),
        (lambda **_: None, "gave 0 scores for 3 completions"),
        (lambda **_: ["x", 1, 2], "not a number"),
        (lambda **_: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_a_bad_function_is_an_error_with_its_name(function, message):
    with pytest.raises(RewardError, match=f"reward f .*{message}|reward f {message}"):
        score(FunctionReward(FunctionOptions(), function, "f"), batch())
