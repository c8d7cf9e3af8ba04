"""What a file's pairs say comes out of the store again, and is what a reward model is then trained on."""

from __future__ import annotations

import json

import pytest

from rlhf_peft.data.encode import Encoder
from rlhf_peft.data.load import load_rows
from rlhf_peft.data.prompts import encode_pairs
from rlhf_peft.engine import BaseSpec
from rlhf_peft.labelling.files import from_file, write_rows
from rlhf_peft.labelling.results import preferences
from rlhf_peft.labelling.store import Store

TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "does f", "parameters": {"type": "object"}},
}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def there_and_back(tmp_path, row):
    """The row that a judgement of the first answer makes."""
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    store = Store(tmp_path / "labels.sqlite")
    store.add(from_file(str(tmp_path / "in.jsonl")))
    store.judge(1, "me", "a")
    write_rows(preferences(store.pairs(), store.judgements()), tmp_path / "out.jsonl")
    return tmp_path / "out.jsonl"


TALK = {"prompt": [user("hi")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}
SYSTEM = {"role": "system", "content": "Be brief"}


@pytest.mark.parametrize(
    "row",
    [
        TALK,
        {"prompt": "hi", "chosen": " good", "rejected": " bad"},
        {**TALK, "system": "Be brief"},
        {**TALK, "prompt": [SYSTEM, user("a"), assistant("b"), user("c")]},
        {**TALK, "prompt": [user("hi"), assistant("It is ")]},
    ],
)
def test_a_reward_model_reads_the_same_pair_before_and_after(tmp_path, row):
    from transformers import AutoTokenizer

    out = there_and_back(tmp_path, row)
    encoder = Encoder(AutoTokenizer.from_pretrained(BaseSpec("builtin:tiny").location))
    before, after = (encode_pairs(load_rows(path=path), encoder)[0] for path in (tmp_path / "in.jsonl", out))
    assert before.chosen_ids.equal(after.chosen_ids) and before.rejected_ids.equal(after.rejected_ids)


@pytest.mark.parametrize("name", ["tools", "functions"])
def test_tools_come_out_again(tmp_path, name):
    out = there_and_back(tmp_path, {**TALK, name: [TOOL]})
    assert json.loads(out.read_text())["tools"] == [TOOL]


@pytest.mark.parametrize(
    "answer", [[CALL], [assistant("a"), user("b"), assistant("c")], [assistant("a", reasoning_content="hm")]]
)
def test_answers_that_are_more_than_a_text_are_named(tmp_path, answer, caplog):
    rows = [{**TALK, "chosen": answer}, TALK]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(from_file(str(tmp_path / "in.jsonl"))) == 1
    assert "1 whose answers are more than one text (first: row 1)" in caplog.text
