import functools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_peft.builtin.rewards import checks
from rlhf_peft.builtin.rewards.exact_match import ExactMatch, ExactMatchOptions
from rlhf_peft.builtin.rewards.numeric_answer import NumericAnswer, NumericAnswerOptions
from rlhf_peft.builtin.rewards.regex import RegexOptions, RegexReward
from rlhf_peft.plugin import RewardError, UsageError

from .answer_cases import CASES, LATER
from .doubles import batch, chats, score


@pytest.mark.parametrize(
    ("gold", "text", "same"),
    [
        ("She has 4 + 5 = 9 eggs.\n#### 9", "So 4 + 5 is 9", True),
        ("9", "9 eggs, no, 10", False),
        ("1,234,567", "It is 1234567.", True),
        ("1234", "1,234 dollars", True),
        ("12", "the pair 1,2 is 12", True),
        ("-3", "x = -3.", True),
        ("3", "x = -3.", False),
        ("-3", "x = −3", True),
        ("7", "10-7", True),
        ("0.5", "1/2", True),
        ("1/3", r"\boxed{\frac{1}{3}}", True),
        ("-1/3", r"\boxed{-\dfrac{1}{3}}", True),
        ("0.33", "1/3", False),
        ("50%", "half, so 0.5", True),
        ("50", "50%", True),
        (r"50\%", "0.5", True),
        ("$18", "18.00", True),
        ("18", "$18.", True),
        ("-18", "-$18", True),
        (".5", "0.5", True),
        ("2e3", "2000", True),
        ("5", r"\boxed{5} and 6", True),
        ("5", r"\boxed{4} then \boxed{5}", True),
        ("5", "#### 5\nThat was question 6", True),
        ("5", "no idea", False),
        ("5", "1e999999999", False),
        ("5", "5/0", False),
        ("none", "5", None),
    ],
)
def test_numbers_as_people_write_them(gold, text, same):
    assert checks.same_answer(gold, text) is same


@pytest.mark.parametrize(("by_algebra", "right"), [(False, 0.99), (True, 1.0)])
def test_answers_of_every_kind(by_algebra, right):
    """No wrong answer is taken for a right one; of the right ones nearly all are known, with algebra all."""
    if by_algebra:
        pytest.importorskip("math_verify")
    given = [(case, checks.same_answer(case[1], case[2], 0.0, by_algebra)) for case in CASES]
    assert len(CASES) > 200
    assert [case for case, same in given if same and not case[3]] == []
    assert [case for case, same in given if same is None] == []
    assert sum(same is case[3] for case, same in given) >= right * len(CASES)


@pytest.mark.parametrize(("gold", "text", "same"), LATER)
def test_answers_that_were_tried_after_the_rules_were_made(gold, text, same):
    assert checks.same_answer(gold, text) is same


def test_a_thousand_answers_of_gsm8k_take_no_time():
    gold = "She has 16 - 3 - 4 = 9 eggs a day.\nShe makes 9 * 2 = $18.\n#### 18"
    text = ("She sells 9 eggs for $2 each, so she makes 9 * 2 = $18 a day. " * 20)[:-1]
    begun = time.perf_counter()
    assert all(checks.same_answer(gold, text) for _ in range(1000))
    assert time.perf_counter() - begun < 5


@given(st.integers(-(10**9), 10**9))
def test_an_integer_is_itself_however_it_is_written(number):
    for written in (f"{number}", f"{number:,}", f"{number}.0", f"so ${number:,}.", rf"\boxed{{{number}}}"):
        assert checks.same_answer(str(number), written)
    assert not checks.same_answer(str(number), str(number + 1))


def test_tolerance_is_relative():
    assert checks.same_answer("100", "101", 0.01) and not checks.same_answer("100", "101.1", 0.01)


@pytest.mark.parametrize("checker", ["own", "auto", "math-verify"])
def test_numeric_answer_scores_chats_and_abstains_without_a_gold_number(checker):
    if checker == "math-verify":
        pytest.importorskip("math_verify")
    reward = NumericAnswer(NumericAnswerOptions(checker=checker))
    given = batch(
        completions=chats("It is #### 42", r"\boxed{41}", "7"),
        columns={"answer": ["x\n#### 42", "42", ""]},
    )
    out = reward.score(given).row
    assert out[:2].tolist() == [1.0, 0.0] and out[2].isnan()


def test_math_verify_knows_algebra():
    pytest.importorskip("math_verify")
    given = batch(completions=[r"\boxed{\sqrt{8}}"], columns={"solution": [r"$2\sqrt{2}$"]})
    assert NumericAnswer(NumericAnswerOptions()).score(given).row.tolist() == [1.0]


def test_math_verify_that_is_not_there_is_said_at_once(monkeypatch):
    monkeypatch.setattr(checks, "has_math_verify", lambda: False)
    with pytest.raises(UsageError, match=r"pip install 'rlhf-peft\[math\]'"):
        NumericAnswer(NumericAnswerOptions(checker="math-verify"))


def test_a_missing_column_lists_those_that_are_there():
    with pytest.raises(RewardError, match="no column answer or solution; it has question"):
        NumericAnswer(NumericAnswerOptions()).score(batch(columns={"question": ["a"] * 3}))
    with pytest.raises(RewardError, match="no column gold"):
        score(ExactMatch(ExactMatchOptions(column="gold")), batch())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.0, 0.0, 1.0]),
        ({"ignore_case": False}, [0.0, 0.0, 1.0]),
        ({"ignore_space": False}, [0.0, 0.0, 1.0]),
        ({"part": "last_line"}, [1.0, 1.0, 1.0]),
        ({"part": "final"}, [0.0, 0.0, 0.0]),
    ],
)
def test_exact_match(options, expected):
    given = batch(
        completions=["new   YORK ", "I say\nRome", "b"],
        columns={"answer": ["New York", "rome", ["a", "b"]]},
    )
    assert score(ExactMatch(ExactMatchOptions(**options)), given).row.tolist() == expected


def test_exact_match_of_the_final_answer():
    given = batch(
        completions=[r"so \boxed{x^{2}}", "#### x^{2}", "x^{2}"], columns={"g": ["... #### x^{2}"] * 3}
    )
    out = score(ExactMatch(ExactMatchOptions(part="final", column="g")), given)
    assert out.row.tolist() == [1.0, 1.0, 0.0]


def test_regex_searches_or_matches_all():
    completions = ["<a>", "x <A>", "no"]
    for options, expected in [
        ({}, [1.0, 0.0, 0.0]),
        ({"flags": ["ignorecase"], "otherwise": -1.0, "score": 2.0}, [2.0, 2.0, -1.0]),
        ({"match": "fullmatch", "flags": ["ignorecase"]}, [1.0, 0.0, 0.0]),
    ]:
        reward = RegexReward(RegexOptions(pattern="<a>", **options))
        assert reward.score(batch(completions=completions)).row.tolist() == expected
    with pytest.raises(ValueError, match="not a regular expression"):
        RegexOptions(pattern="(")


def test_a_column_called_like_an_option_does_no_harm():
    reward = RegexReward(RegexOptions(pattern="c0"))
    assert reward.score(batch(columns={"pattern": ["x"] * 3, "flags": [1] * 3})).row.tolist() == [
        1.0,
        0.0,
        0.0,
    ]
    assert isinstance(reward.function, functools.partial)
