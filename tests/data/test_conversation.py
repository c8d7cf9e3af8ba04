from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_peft.data.conversation import explicit, from_sharegpt, tidy, with_system

from .conftest import assistant, user

SYSTEM = {"role": "system", "content": "be kind"}


def split(chosen, rejected, words=False, **more):
    row = explicit({"chosen": chosen, "rejected": rejected, **more}, words=words)
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


def test_empty_keys_go_and_sharegpt_turns_become_messages():
    assert tidy([{"role": "assistant", "content": None, "name": None}]) == [
        {"role": "assistant", "content": None}
    ]
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}, user("x")]
    assert from_sharegpt(turns) == [user("hi"), assistant("yo"), user("x")]


TEXT = st.text(alphabet="ab \n:Assitn", max_size=30)


@settings(max_examples=200, deadline=None)
@given(
    shared=TEXT, chosen=TEXT, rejected=TEXT, words=st.booleans(), turn=st.sampled_from(["", "\n\nAssistant:"])
)
def test_nothing_is_lost(shared, chosen, rejected, words, turn):
    row = {"chosen": shared + turn + chosen, "rejected": shared + turn + rejected}
    parts = explicit(row, words=words)
    assert parts["prompt"] + parts["chosen"] == row["chosen"]
    assert parts["prompt"] + parts["rejected"] == row["rejected"]


@pytest.mark.parametrize("words", [True, False])
def test_an_answer_that_begins_the_other(words):
    _, chosen, rejected = split("a b", "a b c", words=words)
    assert chosen and rejected
