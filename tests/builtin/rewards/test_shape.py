"""Length, repetition and likelihood, against hand-computed values and TRL's functions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

from rlhf_peft.builtin.rewards.language_model import LanguageModelOptions, LanguageModelReward
from rlhf_peft.builtin.rewards.length import LengthOptions, LengthReward
from rlhf_peft.builtin.rewards.repetition import RepetitionOptions, RepetitionReward
from rlhf_peft.plugin import RewardError

from .doubles import batch, score


def test_length_near_a_target_by_hand():
    ids = [[0] * n for n in (1, 8, 10, 12, 99)]
    out = score(LengthReward(LengthOptions(target=10, width=4)), batch(ids=ids))
    assert out.row.tolist() == [0.0, 0.5, 1.0, 0.5, 0.0]


@given(st.integers(1, 50), st.integers(0, 50))
def test_overlong_is_what_trl_says(longest, cache):
    cache = min(cache, longest)
    ids = [[0] * n for n in (1, longest - cache or 1, longest, longest + 1, 60)]
    out = score(LengthReward(LengthOptions(max=longest, cache=cache)), batch(ids=ids))
    assert out.row.tolist() == pytest.approx(get_soft_overlong_punishment(longest, cache)(ids))


@pytest.mark.parametrize("options", [{}, {"target": 3, "max": 4}, {"max": 3, "cache": 4}])
def test_length_needs_one_rule(options):
    with pytest.raises(ValueError, match=r"give `target`|cache 4 is above max 3"):
        LengthOptions(**options)


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=4), st.integers(1, 4)
)
def test_repetition_is_what_trl_says(ids, n):
    out = score(RepetitionReward(RepetitionOptions(n=n, penalty=2.0)), batch(ids=ids))
    assert out.row.tolist() == pytest.approx(get_repetition_penalty_reward(n, -2.0)(ids))


def test_language_model_is_the_mean_over_the_completions_tokens():
    logps = torch.tensor([[9.0, -1.0, -3.0], [9.0, -2.0, -2.0], [9.0, 0.0, -1.0]])
    out = score(LanguageModelReward(LanguageModelOptions()), batch(logps={"base": logps}))
    assert out.row.tolist() == [-2.0, -2.0, -0.5]
    with pytest.raises(RewardError, match="no log-probabilities of the base"):
        score(LanguageModelReward(LanguageModelOptions()), batch())
