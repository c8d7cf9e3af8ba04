import re

import pytest

from rlhf_peft.builtin.rewards.judge import Judge, JudgeOptions, as_text, grade_in, winner_in
from rlhf_peft.kit.functions import SomeRowsFailed
from rlhf_peft.plugin import RewardError, UsageError

from .doubles import batch, chats, score


def judge(stub, **options):
    return Judge(JudgeOptions(url=f"{stub.url}/v1", model="m", **{"backoff": 0.0, "retries": 0, **options}))


def says(reply):
    return 200, {"choices": [{"message": {"role": "assistant", "content": reply}}]}


def by_length(body):
    """A judge that likes long answers."""
    text = body["messages"][-1]["content"]
    if "[Answer A]" in text:
        a, b = re.search(r"\[Answer A\]\n(.*?)\n\n\[Answer B\]\n(.*?)\n\n", text, re.DOTALL).groups()
        return says("Better: tie" if len(a) == len(b) else f"Better: {'A' if len(a) > len(b) else 'B'}")
    answer = re.search(r"Answer.\n(.*?)\n", text)[1]
    return says(f"Fine.\nGrade: {len(answer)}")


def test_grades(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "k")
    stub = serve(by_length)
    reward = judge(stub, api_key_env="JUDGE_KEY", system="Be fair.", temperature=0.5)
    out = score(
        reward, batch(completions=chats("{a}", "bbbbb"), prompts=[[{"role": "user", "content": "q{}"}]] * 2)
    )
    assert out.row.tolist() == [3.0, 5.0]
    body = stub.bodies[0]
    assert (
        body["model"] == "m" and body["temperature"] == 0.5 and body["messages"][0]["content"] == "Be fair."
    )
    assert stub.paths[0] == "/v1/chat/completions" and stub.headers[0]["Authorization"] == "Bearer k"


def test_comparisons_in_both_orders_within_a_group(serve):
    stub = serve(by_length)
    reward = judge(stub, mode="compare")
    given = batch(completions=["a", "bb", "cc", "d", "ee", "alone"], group=[0, 0, 0, 1, 1, 2])
    row = score(reward, given).row
    assert row[:5].tolist() == [0.0, 0.75, 0.75, 0.0, 1.0] and row[5].isnan()
    assert len(stub.bodies) == 2 * (3 + 1)


def test_a_judge_that_always_prefers_the_first_says_nothing(serve):
    reward = judge(serve(lambda body: says("Better: A")), mode="compare")
    assert score(reward, batch(completions=["a", "b"], group=[0, 0])).row.tolist() == [0.5, 0.5]


def test_a_reply_without_a_verdict_names_the_row_and_keeps_the_others(serve):
    def answer(body):
        return says("I would rather not") if "bad" in body["messages"][0]["content"] else says("Grade: 7")

    with pytest.raises(SomeRowsFailed, match="no verdict: 'I would rather not'") as failed:
        score(judge(serve(answer)), batch(completions=["a", "bad"]))
    row = failed.value.scores.row
    assert failed.value.row == 1 and row[0] == 7.0 and row[1].isnan()


def test_an_endpoint_that_is_none(serve):
    with pytest.raises(RewardError, match=r"no choices\[0\]"):
        score(judge(serve(lambda body: (200, {"error": "?"}))), batch(completions=["a"]))


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("Grade: 7", 7.0),
        ("**Grade:** 7.5/10", 7.5),
        ("Grade: 2, no.\ngrade: 3", 3.0),
        (" 4 ", 4.0),
        ("<think>Grade: 1</think>Grade: 9", 9.0),
        ("so Grade: 1</think>\nGrade: 9", 9.0),
        ("<Think>Grade: 1</Think><thinking>Grade: 2</thinking>Grade: 9", 9.0),
        ("<think>Grade: 3", None),
        ("Grade: 4 <think>Grade: 3", None),
        ("<think>5", None),
        ("Grade: -3", None),
        ("Grade - 3", 3.0),
        ("Grade-3", 3.0),
        ("Grade – 3", 3.0),
        ("Grade: 11", None),
        ("seven", None),
        ("There are 4 reasons", None),
    ],
)
def test_grades_in_replies(reply, grade):
    assert grade_in(reply, 1, 10) == grade


@pytest.mark.parametrize(
    ("reply", "winner"),
    [
        ("Better: A", 1.0),
        ("better: **B**", 0.0),
        ("Better: tie.", 0.5),
        ("B", 0.0),
        ("[[A]]", 1.0),
        ("Better: a tie", 0.5),
        ("Better: Answer B", 0.0),
        ("<think>Better: A</think>Better: B", 0.0),
        ("Better: A</think> Better: B", 0.0),
        ("<think>Better: A", None),
        ("both", None),
    ],
)
def test_winners_in_replies(reply, winner):
    assert winner_in(reply) == winner


@pytest.mark.parametrize(
    "reply", ["Grade: -3", "**Grade:** -3", "grade: \u22123", "Grade -3", "-3", "Grade: -3.0/10"]
)
def test_a_grade_keeps_its_sign(reply):
    assert grade_in(reply, -10, 10) == -3.0


def test_a_reply_that_is_cut_within_its_thoughts_says_so(serve):
    with pytest.raises(RewardError, match=r"ends within its thoughts, .* Raise max_tokens"):
        score(judge(serve(lambda body: says("<think>Grade: 3"))), batch(completions=["a"]))


def test_templates_are_checked_and_keys_asked_for(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(UsageError, match="JUDGE_KEY is not set"):
        Judge(JudgeOptions(url="http://x/v1", model="m", api_key_env="JUDGE_KEY"))
    with pytest.raises(ValueError, match=r"lacks \{completion\}"):
        JudgeOptions(url="http://x", model="m", grade_template="{prompt}")
    with pytest.raises(ValueError, match="not a template"):
        JudgeOptions(url="http://x", model="m", grade_template="{prompt} {completion} {answer}")


def test_prompts_as_text():
    assert as_text("x") == "x"
    two = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert as_text(two) == "system: s\n\nuser: q"
