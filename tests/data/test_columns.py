from __future__ import annotations

import pytest

from rlhf_peft.data.columns import as_yaml, suggest, whole_prompt

PAIR = ("prompt", "chosen", "rejected")
ANSWER = ("prompt", "completion")


@pytest.mark.parametrize(
    "found, shape, mapping",
    [
        (["Question", "Good", "Bad"], PAIR, ["Question", "Good", "Bad"]),
        (["instruction", "chosen_response", "rejected_response"], PAIR, None),
        (
            ["id", "user_prompt", "preferred", "dispreferred"],
            PAIR,
            ["user_prompt", "preferred", "dispreferred"],
        ),
        (["instruction", "input", "output"], ANSWER, ["instruction", "output"]),
        (["question", "answer"], ANSWER, ["question", "answer"]),
        (["Prompt", "Good answer", "Bad answer"], PAIR, ["Prompt", "Good answer", "Bad answer"]),
        (["prompt", "answerGood", "answerBad"], PAIR, ["prompt", "answerGood", "answerBad"]),
        (["Prompts", "Responses"], ANSWER, ["Prompts", "Responses"]),
    ],
)
def test_likely_names(found, shape, mapping):
    wanted = dict(zip(shape, mapping or found, strict=True))
    assert suggest(found, [shape]) == (wanted, True)


def test_a_shape_that_fits_whole_is_preferred():
    assert suggest(["good", "bad"], [PAIR, PAIR[1:]]) == ({"chosen": "good", "rejected": "bad"}, True)


def test_what_cannot_be_guessed_is_left_to_the_user():
    assert suggest(["question", "x"], [ANSWER]) == (
        {"prompt": "question", "completion": "YOUR_COLUMN"},
        False,
    )
    assert suggest([], [ANSWER]) == ({"prompt": "YOUR_COLUMN", "completion": "YOUR_COLUMN"}, False)


def test_what_stands_beside_a_prompt_belongs_to_it():
    found = ["instruction", "input", "output", "id"]
    whole = whole_prompt({"prompt": "instruction", "completion": "output"}, found)
    assert whole == {"prompt": ["instruction", "input"], "completion": "output"}
    assert as_yaml(whole) == "{prompt: [instruction, input], completion: output}"
    assert whole_prompt({"prompt": "input", "completion": "output"}, found) == {
        "prompt": "input",
        "completion": "output",
    }
    assert whole_prompt({"prompt": "YOUR_COLUMN"}, found) == {"prompt": "YOUR_COLUMN"}
