from __future__ import annotations

import json

import pytest

from rlhf_peft.data.json_text import decode_conversation, is_conversation_json, loads, parse_column
from rlhf_peft.data.rows import BadRow

from .conftest import assistant, user

TALK = [user("a"), assistant("b")]


@pytest.mark.parametrize(
    "value",
    [
        TALK,
        [{"id": 3, **user("a")}],
        [{"name": None, "role": "assistant", "content": "b"}],
        [{"value": "a", "from": "human"}],
        [{"role": "assistant", "tool_calls": []}],
    ],
)
def test_conversations_as_text_are_read(value):
    for text in (json.dumps(value), json.dumps(value, indent=2), " " + json.dumps(value)):
        assert is_conversation_json(text) and decode_conversation(text, "chosen") == value


@pytest.mark.parametrize("text", ["{'role': 'user', 'content': 'a'}", str(TALK), json.dumps(TALK)[:-2]])
def test_conversations_that_python_wrote_or_that_are_cut_are_refused(text):
    with pytest.raises(BadRow, match="text that is not JSON"):
        decode_conversation(text, "chosen")


@pytest.mark.parametrize(
    "text",
    [
        '[{"id": 1, "value": 2}]',
        '[{"id": 3}] what is this?',
        '[{"from": "a", "to": "b"}]',
        '{"role": "admin"}',
        '["role"]',
        "[1, 2]",
        "[" * 3000,
        "a",
        "",
    ],
)
def test_other_json_in_a_text_is_text(text):
    assert not is_conversation_json(text) and decode_conversation(text, "completion") == text


def test_one_turn_alone_is_a_conversation_of_one_turn():
    assert (
        decode_conversation(assistant("b"), "chosen")
        == decode_conversation(json.dumps(assistant("b")), "chosen")
        == [assistant("b")]
    )


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "a": 1}}]'])
def test_a_key_that_stands_twice_is_refused(text):
    with pytest.raises(ValueError, match="the key 'a' stands twice"):
        loads(text)


@pytest.mark.parametrize("depth", [250, 990, 5000])
def test_deep_nests_are_refused(depth):
    deep = "[" * depth + "]" * depth
    with pytest.raises(BadRow, match=r"nested more than 200 deep"):
        parse_column(f'[{{"role": "user", "content": "a", "x": {deep}}}]', "messages")
    assert loads("[" * 200 + "]" * 200) is not None
