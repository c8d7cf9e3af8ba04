"""What does not fit is tried again with less."""

import pytest
import torch

from rlhf_peft.errors import RlhfPeftError
from rlhf_peft.session.token_budget import TokenBudget, out_of_memory


def needs(most, asked):
    def attempt(tokens):
        asked.append(tokens)
        if tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return tokens

    return attempt


def test_tokens_are_halved_until_they_fit_and_stay_so():
    budget, asked = TokenBudget("rl", 1000), []
    assert budget.within(needs(300, asked), 100, 900) == 225
    # Where less was asked for than allowed, what was asked for is halved.
    assert asked == [1000, 450, 225] and budget.amount == 225
    assert budget.within(needs(300, asked), 100, 900) == 225 and len(asked) == 4


def test_all_at_once_until_it_does_not_fit():
    budget, asked = TokenBudget("rl", None, "prompts are answered at once", None), []
    assert budget.within(needs(3, asked), 1, 2) == 2 and budget.amount is None
    assert budget.within(needs(3, asked), 1, 8) == 2 and budget.amount == 2
    assert asked == [2, 8, 4, 2]


def test_the_longest_row_is_tried_alone_before_giving_up():
    asked = []
    with pytest.raises(
        RlhfPeftError, match=r"rl: out of memory with 180 tokens in one forward .*rlhf-peft plan"
    ):
        TokenBudget("rl", 300).within(needs(100, asked), 180, 600)
    assert asked == [300, 180]


def test_other_errors_pass():
    def attempt(tokens):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        TokenBudget("rl", 300).within(attempt, 10, 100)


def test_what_it_looks_like():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value) and out_of_memory(MemoryError())
    assert not out_of_memory(ValueError("no"))
