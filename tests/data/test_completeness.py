"""Whatever a conversation says stands in its text, or the row is refused by name: for every way of reading rows."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

from rlhf_peft.data import completeness
from rlhf_peft.data.completeness import find_end, forms, missing
from rlhf_peft.data.encode import Encoder
from rlhf_peft.data.formats import detect
from rlhf_peft.data.prompts import encode_pairs, encode_prompts
from rlhf_peft.data.rows import BadRows
from rlhf_peft.data.table import make_dataset
from rlhf_peft.data.trl_rows import for_trl
from rlhf_peft.errors import DataError

from .conftest import assistant, user

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather of a "city"',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "which city", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
        },
    },
}


def calls(**arguments):
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": arguments}}],
    }


def texts(encoder, row):
    """The text of everything that each way of reading a row is given: SFT, DPO, KTO, reward model, RL."""
    data = make_dataset([(1, row)], "dataset", BadRows("dataset"))
    format, decode = detect(data), encoder.tokenizer.decode
    made = []
    if format.kind == "preference":
        pair = encode_pairs(data, encoder)[0]
        made = [decode(pair.chosen_ids), decode(pair.rejected_ids)]
        dpo = for_trl(data, format, encoder)[0]
        assert [decode(dpo["prompt_ids"] + dpo[name]) for name in ("chosen_ids", "rejected_ids")] == made
        kto = for_trl(data, format, encoder, unpair=True)
        assert [decode(r["prompt_ids"] + r["completion_ids"]) for r in kto] == made
    elif format.kind != "prompt_only":
        made = [decode(for_trl(data, format, encoder)[0]["input_ids"])]
    if "prompt" in row or "chosen" in row:
        prompt = decode(encode_prompts(data, encoder)[0].ids)
        assert all(text.startswith(prompt) for text in made)
        made.append(prompt)
    return made


PROMPT = [user("Weather in Oslo?")]


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [
                *PROMPT,
                calls(city="Oslo"),
                {"role": "tool", "name": "get_weather", "content": "rain"},
                assistant("Rain."),
            ]
        },
        {"prompt": PROMPT, "completion": [calls(city="Oslo")]},
        {"prompt": PROMPT, "chosen": [calls(city="Oslo")], "rejected": [assistant("No idea.")]},
        {"chosen": [*PROMPT, calls(city="Oslo")], "rejected": [*PROMPT, assistant("No idea.")]},
        {"prompt": PROMPT},
    ],
)
def test_tools_reach_every_stage(chat, row, monkeypatch):
    for tools in ([TOOL], json.dumps([TOOL])):
        for text in texts(Encoder(chat), {**row, "tools": tools}):
            assert text.count(json.dumps(TOOL)) == 1
    monkeypatch.setattr(
        chat, "chat_template", template("{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}")
    )
    with pytest.raises(
        DataError,
        match=r"row 1: the chat template would change what is trained on: the tools are not written",
    ):
        texts(Encoder(chat), {**row, "tools": [TOOL]})


@pytest.mark.parametrize(
    "argument", ["Oslo", 'O\'Slo "x"', "Ørsta", 3, 2.5, True, None, ["a", {"b": 1}], {"deep": ["Rome"]}, ""]
)
def test_arguments_are_those_of_the_row(minimind, argument):
    row = {"messages": [*PROMPT, calls(city=argument)]}
    (text,) = texts(Encoder(minimind), row)
    assert f'"arguments": {json.dumps({"city": argument}, ensure_ascii=False)}' in text
    other = {"messages": [*PROMPT, calls(country="x")]}
    data = (
        Dataset.from_dict({"messages": [row["messages"], other["messages"]]})
        if isinstance(argument, str)
        else None
    )
    if data is not None:  # structs of a table are filled with the keys of all rows
        ids = for_trl(data, detect(data), Encoder(minimind))["input_ids"]
        assert "null" not in minimind.decode(ids[0]) and "null" not in minimind.decode(ids[1])


def test_a_template_without_tool_calls(qwen2, monkeypatch):
    monkeypatch.setattr(qwen2, "chat_template", template("{{ m.content }}"))
    with pytest.raises(DataError, match=r"the tool calls of message 2 \(assistant\) are not written"):
        texts(Encoder(qwen2), {"messages": [*PROMPT, calls(city="Oslo"), assistant("x")]})


def template(turn):
    """A chat template that writes each turn in this way."""
    return TURN.replace("TURN", turn)


TURN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\nTURN<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = {"messages": [user("one"), assistant("two"), user("three"), assistant("four")]}


@pytest.mark.parametrize(
    "turn, found",
    [
        (
            "{{ m.content if m.role == 'user' }}",
            r"the content of message 2 \(assistant\) is not written",
        ),
        ("{{ m.content }}{{ m.content }}", r"the content of message 1 \(user\) is written more than once"),
        ("{{ m.content if not loop.last }}", r"the content of message 4 \(assistant\) is not written"),
        ("{{ m.content[:2] }}", r"the content of message 1 \(user\) is not written"),
        ("{{ m.content | upper }}", r"message 1"),
        (
            "{{ messages[loop.length - loop.index].content }}",
            r"message 2 \(assistant\) stands in another place",
        ),
        ("{{ m.text }}", r"message 1"),
    ],
)
def test_a_template_that_changes_what_is_said(qwen2, monkeypatch, turn, found):
    monkeypatch.setattr(qwen2, "chat_template", template(turn))
    with pytest.raises(
        DataError, match=rf"row 1: the chat template would change what is trained on: .*{found}"
    ):
        texts(Encoder(qwen2), TALK)


@pytest.mark.parametrize(
    "turn", ["{{ m.content }}", "{{ m.content | trim }}", "{{ m.content | tojson }}", "\n\n{{ m.content }}\n"]
)
def test_a_template_that_writes_it_in_its_own_way(qwen2, monkeypatch, turn):
    monkeypatch.setattr(qwen2, "chat_template", template(turn))
    talk = {"messages": [user('  one\ntwo "x" é'), assistant(" 1\n\n2 ")]}
    assert len(texts(Encoder(qwen2), talk)) == 1


THOUGHTS = "<think>\nhm\n</think>\n\n"


def test_thoughts_of_earlier_turns_may_go_and_it_is_said(qwen2, monkeypatch, caplog):
    """As Qwen3's template does on purpose; those of the last answer may not."""
    turn = "{{ m.content if loop.last else m.content.split('</think>')[-1].lstrip() }}"
    monkeypatch.setattr(qwen2, "chat_template", template(turn))
    talk = {
        "messages": [user("one"), assistant(THOUGHTS + "two"), user("three"), assistant(THOUGHTS + "four")]
    }
    (text,) = texts(Encoder(qwen2), talk)
    assert text.count("hm") == 1 and "1 of 1 rows hold thoughts in earlier turns" in caplog.text
    monkeypatch.setattr(qwen2, "chat_template", template("{{ m.content.split('</think>')[-1] }}"))
    with pytest.raises(
        DataError, match=r"the thoughts in the content of message 4 \(assistant\) are not written"
    ):
        texts(Encoder(qwen2), talk)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_beside_the_content(qwen2, monkeypatch, key):
    monkeypatch.setattr(qwen2, "chat_template", template("{{ m.content }}{{ m.KEY }}".replace("KEY", key)))
    asked = {"messages": [user("one"), {**assistant("two"), key: "hm"}]}
    assert "hm" in texts(Encoder(qwen2), asked)[0]
    monkeypatch.setattr(qwen2, "chat_template", template("{{ m.content }}"))
    with pytest.raises(DataError, match=rf"{key} of message 2 \(assistant\) is not written"):
        texts(Encoder(qwen2), asked)


@pytest.mark.parametrize("arguments", [{"city": "Oslo"}, '{"city": "Oslo"}'])
def test_templates_that_want_arguments_as_text(qwen2, monkeypatch, arguments):
    turn = "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name + ' ' + c.function.arguments }}{% endfor %}"
    monkeypatch.setattr(qwen2, "chat_template", template(turn))
    message = calls(city="Oslo")
    message["tool_calls"][0]["function"]["arguments"] = arguments
    (text,) = texts(Encoder(qwen2), {"messages": [user("one"), message]})
    assert 'get_weather {"city": "Oslo"}' in text


def test_templates_that_add_to_a_content_that_is_not_there(qwen2, monkeypatch):
    monkeypatch.setattr(
        qwen2, "chat_template", template("{{ m.content + '' }}{{ m.tool_calls | tojson if m.tool_calls }}")
    )
    (text,) = texts(Encoder(qwen2), {"messages": [user("one"), {**calls(city="Oslo"), "content": None}]})
    assert '"city": "Oslo"' in text and "None" not in text


def test_roles_that_a_template_drops(qwen2, monkeypatch):
    turn = "{{ m.content if m.role in ('user', 'assistant') }}"
    monkeypatch.setattr(qwen2, "chat_template", template(turn))
    for role in ("tool", "developer", "system"):
        with pytest.raises(DataError, match=rf"message 1 \({role}\)"):
            texts(Encoder(qwen2), {"messages": [{"role": role, "content": "x y"}, user("z"), assistant("a")]})


def test_a_system_message_may_stand_elsewhere():
    talk = [{"role": "system", "content": "be kind"}, user("one"), assistant("two"), user("three")]
    assert missing("[INST]one[/INST]two[INST]be kind\n\nthree[/INST]", talk) == (None, False)
    assert missing("[INST]one[/INST]two[INST]three[/INST]", talk)[0].startswith(
        "the content of message 1 (system)"
    )


def test_letters_that_the_tokenizer_does_not_know(stories, caplog):
    data = Dataset.from_dict({"text": ["a fox", "a fox \u4e16"]})
    for_trl(data, detect(data), Encoder(stories))
    assert (
        "1 of 2 rows hold letters that the tokenizer does not know; they become <unk> (first: row 2)"
        in caplog.text
    )


VALUES = ["true", "null", "a b", "a\nb", 'say "no"', "é", "\\", "a\\nb", "\u2028", "\x7f", "  ", "😀"]


@pytest.mark.parametrize("value", VALUES)
def test_forms_that_are_left_out_stand_in_no_text_without_a_backslash(value):
    left_out = forms(value) - forms(value, escaped=False)
    assert all("\\" in form for form in left_out)
    for text in ("".join(VALUES), "".join(VALUES).replace("\\", ""), "True None", ""):
        bare = "".join(text.split())
        positions = [(bare.find(form), len(form)) for form in forms(value)]
        found = min((start + size for start, size in positions if start >= 0), default=-1)
        assert find_end(bare, value, 0) == found


def test_a_text_is_written_as_json_only_where_the_conversation_may_hold_json(monkeypatch):
    written = []
    monkeypatch.setattr(
        completeness.json,
        "dumps",
        lambda value, **how: written.append(value) or json.JSONEncoder(**how).encode(value),
    )
    talk = [user("Hi\nthere"), assistant('"Yes"')]
    assert missing('Hi\nthere: "Yes"', talk) == (None, False) and not written
    assert missing('{"Hi\\nthere": "\\"Yes\\""}', talk) == (None, False) and written
