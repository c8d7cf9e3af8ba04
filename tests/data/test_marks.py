"""What a template drops, doubles or moves is found however short the texts are, for every way of reading rows."""

from __future__ import annotations

import pytest

from rlhf_peft.data import chat_text
from rlhf_peft.data.chat_text import Writer
from rlhf_peft.data.encode import Encoder
from rlhf_peft.data.marks import mark, misplaced, plain_shape
from rlhf_peft.errors import DataError

from .conftest import assistant, user
from .test_completeness import TOOL, calls, template, texts

TALK = {"messages": [user("a"), assistant("u"), user("s"), assistant("e")]}
"""Texts of one letter, each of which stands in the names of roles."""
CALLS = (
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}"
)
SYSTEM = {"role": "system", "content": "a"}


def refused(tokenizer, row, found):
    with pytest.raises(
        DataError, match=rf"row 1: the chat template would change what is trained on: .*{found}"
    ):
        texts(Encoder(tokenizer), row)


@pytest.mark.parametrize(
    "turn, found",
    [
        ("{{ m.content if loop.index != 2 }}", r"content of message 2 \(assistant\) is not written"),
        ("{{ m.content if not loop.last }}", r"content of message 4 \(assistant\) is not written"),
        (
            "{{ messages[loop.length - loop.index].content }}",
            r"message 2 \(assistant\) stands in another place",
        ),
        ("{{ m.content }}{{ m.content if loop.last }}", r"message 4 \(assistant\) is written more than once"),
        ("{{ m.content.split() | join(' ') }}", r"message 1 \(user\) is written with other blanks inside"),
        ("{{ m.content | replace('\\n', '') }}", r"message 1 \(user\) is written with other blanks inside"),
        ("{{ m.content.split('\\n')[0] }}", r"message 1 \(user\) is written with other blanks inside"),
    ],
)
def test_short_texts(qwen2, monkeypatch, turn, found):
    monkeypatch.setattr(qwen2, "chat_template", template(turn))
    refused(qwen2, TALK, found)


@pytest.mark.parametrize(
    "turns",
    [
        "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "a{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ messages[0].content if loop.last }}"
        "{{ m.content }}\n{% endfor %}",
    ],
)
def test_a_system_message_that_is_dropped_or_stands_in_an_answer(qwen2, monkeypatch, turns):
    monkeypatch.setattr(qwen2, "chat_template", turns)
    refused(qwen2, {"messages": [SYSTEM, user("b"), assistant("c")]}, r"content of message 1 \(system\)")


def two_calls():
    one, other = calls(city="Oslo"), calls(city="Rome")
    both = [*one["tool_calls"], *other["tool_calls"]]
    talk = [user("w?"), {**one, "tool_calls": both}, {"role": "tool", "content": "Rome: 3"}, assistant("3.")]
    return {"messages": talk}


@pytest.mark.parametrize(
    "turn, found",
    [
        (
            "{{ m.content }}{{ m.tool_calls[0] | tojson if m.tool_calls }}",
            "tool calls of message 2 .* are not written",
        ),
        (CALLS + "{{ m.tool_calls | tojson if m.tool_calls }}", "arguments .* are written more than once"),
        (
            "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}",
            "arguments .* are not written",
        ),
    ],
)
def test_calls(qwen2, monkeypatch, turn, found):
    monkeypatch.setattr(qwen2, "chat_template", template(turn))
    refused(qwen2, two_calls(), found)


def test_arguments_are_written_as_json_not_as_python_does(qwen2, monkeypatch):
    turn = "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}"
    monkeypatch.setattr(qwen2, "chat_template", template(turn.replace("{{ c.", "{{ c.function.name }}{{ c.")))
    (text,) = texts(Encoder(qwen2), {"messages": [user("w?"), calls(city="Oslo", ok=True)]})
    assert '{"city": "Oslo", "ok": true}' in text


SECOND = {"type": "function", "function": {"name": "g", "description": "a", "parameters": {}}}


@pytest.mark.parametrize(
    "head, found",
    [
        ("{{ tools[0] | tojson if tools }}", "a description of a tool is not written"),
        (
            "{{ tools | tojson if tools }}{{ tools | tojson if tools }}",
            "description of a tool is written more than once",
        ),
        (
            "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}",
            "description of a tool is not written",
        ),
        (
            "{% for t in tools or [] %}{{ t.function.name }}{{ t.function.description }}{% endfor %}",
            "a parameter of a tool is not written",
        ),
    ],
)
def test_tools(qwen2, monkeypatch, head, found):
    """What is missing of them is said in the conversation."""
    monkeypatch.setattr(qwen2, "chat_template", head + template("{{ m.content }}"))
    said = 'get_weather Weather of a "city" which city Oslo Rome g a'
    refused(qwen2, {"messages": [user(said), assistant("x")], "tools": [TOOL, SECOND]}, found)


@pytest.mark.parametrize(
    "turn, thought, found",
    [
        ("{{ m.content }}{{ m.reasoning_content }}{{ m.reasoning_content }}", True, "written more than once"),
        ("{{ m.content }}", True, "reasoning_content of message 2 .* is not written"),
        (
            "{{ m.content.split('</think>')[0] if '</think>' in m.content }}{{ m.content }}",
            False,
            "thoughts in the content .* more than once",
        ),
    ],
)
def test_thoughts(qwen2, monkeypatch, turn, thought, found):
    monkeypatch.setattr(qwen2, "chat_template", template(turn))
    answer = (
        {**assistant("x"), "reasoning_content": "u"} if thought else assistant("<think>\nu\n</think>\n\nx")
    )
    refused(qwen2, {"messages": [user("w?"), answer]}, found)


def test_further_keys_are_named_where_a_template_does_not_write_them(qwen2, monkeypatch, caplog):
    talk = {"messages": [{**user("a"), "name": "Bob", "id": "1"}, assistant("b")]}
    monkeypatch.setattr(qwen2, "chat_template", template("{{ m.name }}{{ m.content }}"))
    assert "Boba" in texts(Encoder(qwen2), talk)[0] and not caplog.text
    monkeypatch.setattr(qwen2, "chat_template", template("{{ m.content }}"))
    texts(Encoder(qwen2), talk)
    assert "1 of 1 rows hold the key name in messages, which the chat template does not write" in caplog.text
    assert "key id" not in caplog.text


def test_conversations_of_one_shape_are_looked_at_once():
    first, other = (mark([user(text), assistant(text + "!")]) for text in ("a", "b c"))
    assert first.shape == other.shape != mark([user("a")]).shape
    assert misplaced("zq0qz", first) is not None


SHAPES = [
    [user("a")],
    [user("b c")],
    [user("")],
    [user(" ")],
    [user(None)],
    [assistant("a")],
    [user("a"), assistant("b")],
    [user("a"), assistant("")],
    [user("a"), assistant(" ")],
    [user("a"), assistant(None)],
    [SYSTEM, user("a")],
    [user("x"), assistant("y")],
]


def test_plain_conversations_have_the_same_shape_without_marks():
    for first in SHAPES:
        for other in SHAPES:
            alike = mark(first).shape == mark(other).shape
            assert (plain_shape(first) == plain_shape(other)) is alike
    assert all(plain_shape(messages) is not None for messages in SHAPES)


@pytest.mark.parametrize(
    "message",
    [
        {**user("a"), "name": "Bob"},
        {**assistant("a"), "reasoning_content": "b"},
        {"content": "a", "role": "user"},
        assistant("<think>a</think>b"),
        calls(city="Oslo"),
    ],
)
def test_other_messages_have_no_plain_shape(message):
    assert plain_shape([user("a"), message]) is None


def test_tools_are_a_part_of_the_shape():
    assert plain_shape([user("a")], [TOOL]) is None


def test_texts_are_marked_once_for_each_shape(qwen2, monkeypatch):
    marked = []
    monkeypatch.setattr(chat_text, "mark", lambda *given: marked.append(given) or mark(*given))
    writer = Writer(qwen2, {}, [])
    for number in range(20):
        writer.conversation([user(f"{number}?"), assistant(f"{number}.")], None)
    assert len(marked) == 1
    writer.conversation([user("0?"), assistant("0."), user("1?"), assistant("1.")], None)
    assert len(marked) == 2
