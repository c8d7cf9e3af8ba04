"""The environment that ships: it computes, and what a model writes is never executed."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_peft.builtin.environments.calculator import LARGEST, Calculator, CalculatorOptions, evaluate
from rlhf_peft.testing import check_environment


def call(expression, arguments=None):
    given = json.dumps({"expression": expression}) if arguments is None else arguments
    function = {"name": "calculate", "arguments": given}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def started(row=None, **options):
    environment = Calculator(CalculatorOptions(**options))
    assert environment.start(row or {"prompt": "What is 3 * (4 + 5)?", "answer": "27"}) is None
    return environment


def test_it_keeps_the_rules():
    check_environment(
        Calculator, answers=[call("3 * (4 + 5)"), {"role": "assistant", "content": "It is 27."}]
    )


def test_a_call_is_answered_and_a_right_answer_scores():
    environment = started()
    step = environment.step(call("3 * (4 + 5)"))
    assert step.messages == [{"role": "tool", "name": "calculate", "content": "27"}] and not step.done
    step = environment.step({"role": "assistant", "content": "3 * (4 + 5) is 27.0."})
    assert step.done and step.reward == 1.0 and step.metrics == {"calls": 1.0, "failed_calls": 0.0}


@pytest.mark.parametrize(("answer", "reward"), [("28", 0.0), ("no number", 0.0), ("1,000 less 973: 27", 1.0)])
def test_the_last_number_of_an_answer_counts(answer, reward):
    assert started().step({"role": "assistant", "content": answer}).reward == reward


def test_a_row_without_an_answer_has_no_reward():
    assert started({"prompt": "hello"}).step({"role": "assistant", "content": "1"}).reward is None


def test_a_conversation_ends_after_so_many_turns():
    environment = started(max_turns=2)
    assert not environment.step(call("1")).done
    assert environment.step(call("1")).done


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "(1).__class__",
        "[].append(1)",
        "lambda: 1",
        "'a' * 9",
        "True + 1",
        "9**9**9**9",
        "10**400",
        "1/0",
        "(-8) ** 0.5",
        "(" * 150 + ")" * 150,
        "1+" * 150 + "1",
        "",
        "1;2",
    ],
)
def test_what_is_no_arithmetic_is_an_error_message(expression):
    (message,) = started().step(call(expression)).messages
    assert message["content"].startswith("error: ")


@pytest.mark.parametrize("arguments", ["{]", "[]", "null", json.dumps({"other": 1}), {"expression": None}])
def test_arguments_that_are_none_are_an_error_message(arguments):
    (message,) = started().step(call("", arguments)).messages
    assert message["content"].startswith("error: ")


NUMBERS = st.integers(-1000, 1000).map(float)


@given(NUMBERS, NUMBERS, st.sampled_from(["+", "-", "*"]))
def test_values_are_pythons(a, b, operation):
    value = {"+": a + b, "-": a - b, "*": a * b}[operation]
    assert math.isclose(evaluate(f"({a}) {operation} ({b})"), value) and abs(value) <= LARGEST
