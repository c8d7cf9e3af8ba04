"""What a row says beside its conversation is read, named, or the row is refused."""

from __future__ import annotations

import pytest

from rlhf_peft.data.conversation import messages_of
from rlhf_peft.data.encode import Encoder
from rlhf_peft.data.examples import notes_of
from rlhf_peft.data.rows import BadRow
from rlhf_peft.errors import DataError

from .conftest import as_example, assistant, user
from .test_completeness import TOOL, texts

TALK = [user("hi"), assistant("ahoy")]
HH = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"prompt": TALK[:1], "completion": TALK[1:]},
        {"prompt": TALK[:1], "chosen": TALK[1:], "rejected": [assistant("no")]},
        {"chosen": TALK, "rejected": [user("hi"), assistant("no")]},
        {"prompt": TALK[:1]},
    ],
)
def test_a_column_with_the_system_message(chat, row):
    for text in texts(Encoder(chat), {**row, "system": "Be a pirate"}):
        assert text.count("Be a pirate") == 1
    assert "column system; it stands before" in notes_of({**row, "system": "Be a pirate"})[0]


def test_two_system_messages():
    own = [{"role": "system", "content": "Be a pirate"}, *TALK]
    assert as_example({"system": " Be a pirate", "messages": own})["messages"] == own
    with pytest.raises(BadRow, match="another system message"):
        as_example({"system": "Be kind", "messages": own})
    with pytest.raises(BadRow, match="system is the value 3"):
        as_example({"system": 3, "messages": TALK})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b"},
        {"text": "a"},
        {"prompt": "a"},
        HH,
    ],
)
@pytest.mark.parametrize(
    "name, value", [("system", "Be kind"), ("tools", [TOOL]), ("functions", [TOOL["function"]])]
)
def test_what_plain_text_has_no_place_for_is_refused(qwen2, row, name, value):
    with pytest.raises(DataError, match=rf"row 1: the column {name} stands beside plain text"):
        texts(Encoder(qwen2), {**row, name: value})
    texts(Encoder(qwen2), {**row, name: None})


def test_a_row_of_plain_text_among_conversations_that_get_a_system_message():
    with pytest.raises(BadRow, match=r"dataset\.system is given"):
        as_example({"prompt": "a", "completion": "b"}, system="Be kind")


def test_the_column_that_holds_the_prompt_is_named():
    row = {"conversations": TALK[:1], "chosen": TALK[1:], "rejected": [assistant("no")]}
    with pytest.raises(BadRow, match=r"no prompt") as problem:
        as_example(row)
    assert "dataset.columns={prompt: conversations}" in problem.value.remedy


def test_functions_are_tools(minimind):
    assert '"which city"' in texts(Encoder(minimind), {"messages": TALK, "functions": [TOOL["function"]]})[0]


@pytest.mark.parametrize(
    "extra, found",
    [
        ({"value": "b"}, "holds value beside its text"),
        ({"images": ["a.png"]}, "holds images beside"),
        ({"refusal": "No."}, "holds refusal beside"),
        ({"weight": 0}, "has weight 0"),
        ({"train": False}, "has train False"),
        (
            {"content": [{"type": "text", "text": "a", "image_url": "u"}]},
            "a part with image_url beside its text",
        ),
    ],
)
def test_what_a_message_says_beside_its_text_is_refused(extra, found):
    with pytest.raises(BadRow, match=found):
        messages_of([user("hi"), {**assistant("ahoy"), **extra}], "messages")


def test_the_two_ways_of_naming_turns_may_mix():
    mixed = [{"from": "human", "content": "hi"}, {"role": "assistant", "value": "ahoy"}]
    assert as_example({"messages": mixed})["messages"] == TALK


def test_a_blank_prompt_is_none(qwen2):
    with pytest.raises(BadRow, match="prompt is empty"):
        as_example({"prompt": "  ", "completion": [assistant("x")]})


def test_a_row_of_another_format_says_so(jsonl, qwen2):
    from rlhf_peft.data.formats import require
    from rlhf_peft.data.load import load_rows
    from rlhf_peft.data.trl_rows import for_trl

    rows = load_rows(path=jsonl({"prompt": "a", "completion": "b"}, {"messages": TALK}))
    with pytest.raises(
        DataError, match=r"row 2: it holds messages, where other rows hold prompt and completion"
    ):
        for_trl(rows, require(rows, "sft", "x"), Encoder(qwen2))
