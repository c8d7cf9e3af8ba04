import asyncio

import pytest
import torch
from pydantic import ValidationError
from rlhf_peft_length_shaping import LengthShaping, LengthShapingOptions, length_score

from rlhf_peft.testing import check_reward, make_reward_batch

FORM = {"required": ["<answer>.*</answer>"], "forbidden": ["(?i)as an ai", "!!"]}


@pytest.mark.parametrize("options", [{}, {"target": 5, "tolerance": 0}, FORM])
def test_it_keeps_the_rules_of_rewards(options):
    check_reward(LengthShaping, options)


def test_lengths_by_hand():
    scores = length_score(torch.tensor([0, 6, 8, 10, 12, 15, 50]), target=10, tolerance=2)
    assert scores.tolist() == pytest.approx([-0.8, -0.2, 0.0, 0.0, 0.0, -0.3, -1.0])


def test_forms_by_hand():
    batch = make_reward_batch(["<answer>\n4</answer>", "As an AI, no!!", "<answer>4</answer>!!", ""])
    scores = asyncio.run(LengthShaping(LengthShapingOptions(length_weight=0.0, **FORM)).score(batch))
    assert scores.row.tolist() == pytest.approx([1.0, -1.0, 0.5, 0.0])
    assert scores.metrics["form_ok"] == pytest.approx(0.25)


def test_a_pattern_that_does_not_compile_is_refused():
    with pytest.raises(ValidationError, match="no regular expression"):
        LengthShapingOptions(required=["("])
