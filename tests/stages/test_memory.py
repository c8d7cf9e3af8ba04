"""What does not fit is tried again with less."""

import pytest
import torch

from rlhf_peft.errors import RlhfPeftError
from rlhf_peft.stages.memory import Budget, out_of_memory


def needs(most, asked):
    def attempt(tokens):
        asked.append(tokens)
        if tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return tokens

    return attempt


def test_tokens_are_halved_until_they_fit_and_stay_so():
    budget, asked = Budget("rl", 1000), []
    assert budget.within(needs(300, asked), 100) == 250
    assert asked == [1000, 500, 250] and budget.tokens == 250
    assert budget.within(needs(300, asked), 100) == 250 and len(asked) == 4


def test_the_longest_row_is_tried_alone_before_giving_up():
    asked = []
    with pytest.raises(RlhfPeftError, match=r"rl: out of memory with one row of 180 tokens .*rlhf-peft plan"):
        Budget("rl", 300).within(needs(100, asked), 180)
    assert asked == [300, 180]


def test_other_errors_pass():
    def attempt(tokens):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Budget("rl", 300).within(attempt, 10)


def test_what_it_looks_like():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value) and out_of_memory(MemoryError())
    assert not out_of_memory(ValueError("no"))
