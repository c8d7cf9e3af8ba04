from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_peft.data.calls import tools_of
from rlhf_peft.data.conversation import messages_of, with_system
from rlhf_peft.data.examples import prompt_and_answers
from rlhf_peft.data.rows import BadRow

from .conftest import assistant, user

SYSTEM = {"role": "system", "content": "be kind"}


def split(chosen, rejected, words=False, **more):
    row = prompt_and_answers(
        {"chosen": chosen, "rejected": rejected, **more}, ["chosen", "rejected"], None, words
    )
    return row["prompt"], row["chosen"], row["rejected"]


def test_turns_are_the_boundary():
    start = "\n\nHuman: Why?\n\nAssistant: Well.\n\nHuman: Go on\n\nAssistant:"
    assert split(start + " Are you sure?", start + " Are we?") == (start, " Are you sure?", " Are we?")
    early = "\n\nHuman: Why?\n\nAssistant:"
    assert split(early + " A.\n\nHuman: b\n\nAssistant: c", early + " B.") == (
        early,
        " A.\n\nHuman: b\n\nAssistant: c",
        " B.",
    )


def test_text_without_turns():
    assert split("The sky is blue", "The sky is green") == ("", "The sky is blue", "The sky is green")
    assert split("The sky is blue", "The sky is green", words=True) == ("The sky is", " blue", " green")
    assert split("The sky is bright", "The sky is broad", words=True) == ("The sky is", " bright", " broad")
    assert split("Q:\nno", "Q:\nyes", words=True) == ("Q:\n", "no", "yes")
    assert split("good", "bad", words=True) == ("", "good", "bad")


def test_hh_rows_split_at_their_last_shared_turn(hh):
    for line in hh.read_text(encoding="utf-8").splitlines()[:300]:
        row = json.loads(line)
        if any(row[name].endswith("Assistant: ") for name in TWO):
            continue  # an answer of nothing is a bad row
        prompt, chosen, rejected = split(row["chosen"], row["rejected"])
        assert prompt.startswith("\n\nHuman:") and prompt.endswith("\n\nAssistant:")
        assert prompt + chosen == row["chosen"] and prompt + rejected == row["rejected"]


def test_common_messages_are_the_prompt():
    asked = [SYSTEM, user("hi"), assistant("yes?"), user("why?")]
    got = split([*asked, assistant("a")], [*asked, assistant("b")])
    assert got == (asked, [assistant("a")], [assistant("b")])
    same_start = [*asked, assistant("a")]
    assert split(same_start, [*same_start, user("x")])[0] == asked  # an answer is left to both


def test_prompt_column_beside_whole_conversations():
    whole = [user("hi")]
    a, b = [*whole, assistant("a")], [*whole, assistant("b")]
    apart = (whole, [assistant("a")], [assistant("b")])
    assert split(a, b, prompt="hi") == apart
    assert split(a, b, prompt=whole) == apart
    assert split(a[1:], b[1:], prompt=whole) == apart
    assert split(a[1:], b[1:], prompt="hi") == apart
    assert split("a", "b", prompt=whole) == apart


def test_system_message_comes_once():
    once = with_system([user("hi")], "be kind")
    assert once == [SYSTEM, user("hi")]
    assert with_system(once, "be kind") is once
    assert with_system("plain", "be kind") == "plain"
    assert with_system([user("hi")], None) == [user("hi")]


# --- one form ---


@pytest.mark.parametrize(
    "role, known",
    [
        ("user", "user"),
        ("human", "user"),
        ("Human", "user"),
        ("prompter", "user"),
        ("assistant", "assistant"),
        ("Assistant", "assistant"),
        ("gpt", "assistant"),
        ("model", "assistant"),
        (" MODEL ", "assistant"),
        ("bot", "assistant"),
        ("System", "system"),
        ("developer", "developer"),
        ("tool", "tool"),
        ("function", "tool"),
        ("observation", "tool"),
    ],
)
def test_roles_by_other_names(role, known):
    assert messages_of([{"role": role, "content": "x"}], "messages") == [{"role": known, "content": "x"}]
    assert messages_of([{"from": role, "value": "x"}], "conversations") == [{"role": known, "content": "x"}]


@pytest.mark.parametrize("role", ["critic", "", None, 3, ["user"], "user2", "function_call"])
def test_an_unknown_role_is_named(role):
    shown = "no role" if role is None else f"the role {role!r}"
    with pytest.raises(BadRow) as caught:
        messages_of([user("hi"), {"role": role, "content": "x"}], "messages")
    assert str(caught.value).startswith(
        f"message 2 of messages has {shown}, expected one of system, developer, user"
    )


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "hi there"}],
        [{"type": "text", "text": "hi"}, {"type": "text", "text": " there"}],
        [{"text": "hi there"}],
        ["hi", " there"],
        [{"type": "input_text", "text": "hi there"}],
    ],
)
def test_parts_of_text_are_one_text(content):
    assert messages_of([{"role": "user", "content": content}], "prompt") == [user("hi there")]


@pytest.mark.parametrize(
    "content, found",
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "a part of type 'image_url'"),
        ([{"type": "text", "text": "a"}, {"type": "image"}], "a part of type 'image'"),
        ([{"type": "text", "text": None}], "a part of type 'text'"),
        ([{"type": "image", "text": "caption"}], "a part of type 'image'"),
        ([3], "a part that is the value 3"),
        (3, "is the value 3, expected text"),
        ({"text": "x"}, "is an object, expected text"),
    ],
)
def test_other_content_is_refused(content, found):
    with pytest.raises(BadRow, match=found):
        messages_of([{"role": "user", "content": content}], "messages")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "model", "parts": [{"text": "Gemini's way"}]},
        {"role": "user", "text": "x"},
        {"from": "human", "text": "x"},
    ],
)
def test_a_message_without_text_is_refused(message):
    with pytest.raises(BadRow, match=r"message 1 of messages has no (content|value) \(its keys: "):
        messages_of([message], "messages")


def test_what_a_message_holds_beside_its_text_stays():
    message = {"role": "tool", "name": "f", "tool_call_id": "1", "content": "5", "nothing": None}
    assert messages_of([message], "m") == [{"role": "tool", "content": "5", "name": "f", "tool_call_id": "1"}]


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def test_arguments_of_tool_calls_are_objects():
    said = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call("f", '{"city": "Oslo", "n": null}', id="1")],
    }
    assert messages_of([said], "m")[0]["tool_calls"] == [call("f", {"city": "Oslo", "n": None}, id="1")]
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}}
    assert messages_of([old], "m")[0]["tool_calls"] == [call("f", {"a": 1})]
    flat = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}
    assert messages_of([flat], "m")[0]["tool_calls"] == [{"name": "f", "arguments": {"a": 1}}]


@pytest.mark.parametrize(
    "calls", ["f()", [1], [{"function": {"arguments": {}}}], [call("f", "not JSON")], [call("f", [1])]]
)
def test_malformed_tool_calls_are_refused(calls):
    with pytest.raises(BadRow, match="tool call"):
        messages_of([{"role": "assistant", "content": "", "tool_calls": calls}], "m")


def test_tools_are_a_list_of_schemas():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert tools_of([tool]) == tools_of(json.dumps([tool])) == [tool]
    assert tools_of(None) is tools_of([]) is tools_of("") is None
    for wrong in ("f(x)", [1], {"name": "f"}, [{"type": "function", "function": {}}], 3):
        with pytest.raises(BadRow, match="tool"):
            tools_of(wrong)


# --- the prompt of answers ---

TWO = ["chosen", "rejected"]


def ids(messages, start):
    return [{**m, "id": f"{start}{n}"} for n, m in enumerate(messages)]


def test_turns_are_compared_by_what_they_say():
    a, b = [user("hi"), assistant("a")], [user("hi"), assistant("b")]
    for prompt in ("hi", [user("hi")], None):
        row = prompt_and_answers(
            {"prompt": prompt, "chosen": ids(a, "c"), "rejected": ids(b, "r")}, TWO, None
        )
        assert [m["content"] for m in row["prompt"]] == ["hi"]
        assert [[m["content"] for m in row[name]] for name in TWO] == [["a"], ["b"]]


def test_a_system_message_in_the_answers_belongs_to_the_prompt():
    a, b = [SYSTEM, user("hi"), assistant("a")], [SYSTEM, user("hi"), assistant("b")]
    whole = {"prompt": [SYSTEM, user("hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    for prompt in ("hi", [user("hi")], [SYSTEM, user("hi")], None):
        assert prompt_and_answers({"prompt": prompt, "chosen": a, "rejected": b}, TWO, "another") == whole
    assert (
        prompt_and_answers({"prompt": [SYSTEM, user("hi")], "chosen": a[1:], "rejected": b[1:]}, TWO, None)
        == whole
    )


def test_a_prompt_that_is_the_last_question_alone():
    talk = [user("1"), assistant("2"), user("3")]
    row = prompt_and_answers(
        {"prompt": "3", "chosen": [*talk, assistant("a")], "rejected": [*talk, assistant("b")]}, TWO, None
    )
    assert row == {"prompt": talk, "chosen": [assistant("a")], "rejected": [assistant("b")]}


def test_a_completion_that_repeats_its_prompt():
    row = prompt_and_answers(
        {"prompt": [user("hi")], "completion": [user("hi"), assistant("a")]}, ["completion"], None
    )
    assert row == {"prompt": [user("hi")], "completion": [assistant("a")]}


@pytest.mark.parametrize(
    "row, reason",
    [
        (
            {
                "prompt": "other",
                "chosen": [user("hi"), assistant("a")],
                "rejected": [user("hi"), assistant("b")],
            },
            "chosen begins with the role 'user'",
        ),
        (
            {"prompt": [user("hi")], "chosen": [SYSTEM, assistant("a")], "rejected": [assistant("b")]},
            "chosen begins with the role 'system'",
        ),
        (
            {
                "prompt": [{**SYSTEM, "content": "be rude"}, user("hi")],
                "chosen": [SYSTEM, user("hi"), assistant("a")],
                "rejected": [assistant("b")],
            },
            "its system message is not the prompt's",
        ),
        (
            {"prompt": "hi", "chosen": [user("hi")], "rejected": [assistant("b")]},
            "chosen begins with the role 'user'",
        ),
        (
            {
                "prompt": "hi",
                "chosen": [SYSTEM, user("hi"), assistant("a")],
                "rejected": [user("hi"), assistant("b")],
            },
            "repeat different prompts",
        ),
        ({"prompt": None, "chosen": [assistant("a")], "rejected": [assistant("b")]}, "no prompt"),
        (
            {"prompt": None, "chosen": [user("a"), user("b")], "rejected": [user("a"), assistant("c")]},
            "no prompt",
        ),
    ],
)
def test_answers_that_are_none(row, reason):
    with pytest.raises(BadRow, match=reason):
        prompt_and_answers(row, TWO, None)


def test_answers_that_differ_after_a_shared_answer():
    a = [user("1"), assistant("2"), user("3"), assistant("4")]
    b = [user("1"), assistant("2"), user("5"), assistant("6")]
    row = prompt_and_answers({"chosen": a, "rejected": b}, TWO, None)
    assert row == {"prompt": [user("1")], "chosen": a[1:], "rejected": b[1:]}


TEXT = st.text(alphabet="ab \n:Assitn", max_size=30)


@settings(max_examples=200, deadline=None)
@given(
    shared=TEXT, chosen=TEXT, rejected=TEXT, words=st.booleans(), turn=st.sampled_from(["", "\n\nAssistant:"])
)
def test_nothing_is_lost(shared, chosen, rejected, words, turn):
    row = {"chosen": shared + turn + chosen, "rejected": shared + turn + rejected}
    if not shared + turn + chosen.strip() or not (shared + turn + rejected).strip():
        return
    try:
        parts = prompt_and_answers(row, TWO, None, words)
    except BadRow as problem:
        assert "empty" in str(problem)
        return
    assert parts["prompt"] + parts["chosen"] == row["chosen"]
    assert parts["prompt"] + parts["rejected"] == row["rejected"]


@pytest.mark.parametrize("words", [True, False])
def test_an_answer_that_begins_the_other(words):
    _, chosen, rejected = split("a b", "a b c", words=words)
    assert chosen and rejected
