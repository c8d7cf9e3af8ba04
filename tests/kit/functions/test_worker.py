"""What counts as scores."""

import collections
import decimal
import fractions

import numpy as np
import pytest
import torch

from rlhf_peft.errors import RewardError
from rlhf_peft.kit.functions import FunctionOptions, FunctionReward
from rlhf_peft.kit.functions.reward import scores_of
from rlhf_peft.kit.functions.worker import BadScores, numbers
from rlhf_peft.types import Scores
from tests.builtin.rewards.doubles import batch, score
from tests.stages.rl.rewards.reward_doubles import rewards, scored

TAKEN = [
    [1, 2.0, True],
    (1, 2, 1),
    np.array([1, 2, 1]),
    np.array([1, 2, 1], dtype=np.float16),
    torch.tensor([1.0, 2.0, 1.0], requires_grad=True),
    torch.tensor([1, 2, 1], dtype=torch.bfloat16),
    [np.float32(1), torch.tensor(2), fractions.Fraction(1)],
    [decimal.Decimal(1), np.array(2), 1],
    collections.deque([1, 2, 1]),
]
REFUSED = [
    ({1.0, 2.0, 3.0}, "a set"),
    (frozenset({1.0}), "a frozenset"),
    ({0: 1.0, 1: 2.0, 2: 1.0}, "a dict"),
    ({0: 1.0}.values(), "a dict_values"),
    ((x for x in [1.0, 2.0, 1.0]), "a generator"),
    (map(float, [1, 2, 1]), "a map"),
    ("123", "a str"),
    (b"123", "a bytes"),
    (bytearray(b"123"), "a bytearray"),
    (1.0, "a float"),
    (3, "an int"),
    (True, "a bool"),
    (None, "None"),
    (np.float64(1.0), r"a float64 of shape \(\)"),
    (np.array(1.0), r"a ndarray of shape \(\)"),
    (np.ones((3, 1)), r"a ndarray of shape \(3, 1\)"),
    (torch.tensor(1.0), r"a Tensor of shape \(\)"),
    (torch.ones(1, 3), r"a Tensor of shape \(1, 3\)"),
]
BAD_ITEMS = [
    ([[1.0], [2.0], [1.0]], r"gave \[1\.0\] for row 0"),
    ([1.0, torch.tensor([1.0]), 1.0], r"gave tensor\(\[1\.\]\) for row 1"),
    ([1.0, np.ones(1), 1.0], "for row 1"),
    ([1.0, "2", 1.0], "gave '2' for row 1"),
    ([1.0, 1j, 1.0], "gave 1j for row 1"),
    ([1.0, {}, 1.0], r"gave \{\} for row 1"),
    ([1.0, 10**400, 1.0], "for row 1, which is not a finite number"),
    (torch.tensor([1.0, float("nan"), 1.0]), "gave nan for row 1"),
    (np.array([1.0, 1j, 1.0]), r"gave \(1\+0j\) for row 0"),
]


@pytest.mark.parametrize("given", TAKEN, ids=lambda given: type(given).__name__)
def test_a_sequence_of_numbers_is_taken(given):
    assert numbers(given, 3) == [1.0, 2.0, 1.0]


@pytest.mark.parametrize(("given", "named"), REFUSED, ids=[str(named) for _, named in REFUSED])
def test_anything_else_is_refused_by_its_name(given, named):
    with pytest.raises(
        BadScores, match=rf"returned {named}\. Expected a list, .* for each of the 3 completions"
    ):
        numbers(given, 3)


@pytest.mark.parametrize(("given", "message"), BAD_ITEMS, ids=[message for _, message in BAD_ITEMS])
def test_an_item_that_is_no_number_is_named(given, message):
    with pytest.raises(BadScores, match=message):
        numbers(given, 3)


def sets(completions, **_):
    return set(completions)


def scalar(**_):
    return 1.0


@pytest.mark.parametrize("in_process", [False, True])
@pytest.mark.parametrize(("function", "named"), [(sets, "a set"), (scalar, "a float")])
def test_a_function_is_held_to_it_wherever_it_runs(in_process, function, named):
    reward = FunctionReward(FunctionOptions(), function, "f")
    made = rewards({"f": {"in_process": in_process}}, f=reward)
    with pytest.raises(RewardError, match=rf"reward f .*returned {named} at rl step 4\. Expected a list"):
        scored(made)
    made.close()
    with pytest.raises(RewardError, match=f"reward f returned {named}"):
        score(reward, batch())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({1.0, 2.0}, "returned a set"),
        (1.0, "returned a float"),
        (torch.ones(()), r"returned a Tensor of shape \(\) as scores"),
        (torch.ones(3, 1), r"returned a Tensor of shape \(3, 1\) as scores"),
        (torch.ones(3, dtype=torch.complex64), "as scores"),
        (torch.ones(1), "gave 1 score for 3 completions"),
        ([1.0, "x", 1.0], "gave 'x' for row 1"),
    ],
)
def test_so_is_a_whole_reward(row, message):
    with pytest.raises(BadScores, match=message):
        scores_of(Scores(row=row), 3)


def test_a_whole_reward_may_give_a_list_and_nan_abstains():
    row = scores_of(Scores(row=[1, float("nan"), 2]), 3).row
    assert row.dtype == torch.float32 and row.isnan().tolist() == [False, True, False]


def test_what_is_no_scores_is_named():
    with pytest.raises(BadScores, match=r"returned a list\. Expected Scores"):
        scores_of([1.0], 1)
    with pytest.raises(BadScores, match=r"returned a list as token scores\. Expected a tensor"):
        scores_of(Scores(row=torch.ones(1), token=[[1.0]]), 1)
