from __future__ import annotations

import pytest
from datasets import Dataset
from trl.data_utils import is_conversational, unpair_preference_dataset

from rlhf_peft.data.encode import Encoder
from rlhf_peft.data.formats import detect, require
from rlhf_peft.data.load import load_rows
from rlhf_peft.data.rows import ROW
from rlhf_peft.data.trl_rows import for_trl
from rlhf_peft.errors import DataError

from .conftest import assistant, user
from .test_formats import ASK, BAD, GOOD, TRL


def converted(*rows, **options):
    """The rows for TRL, without their numbers."""
    data = Dataset.from_list(list(rows))
    return for_trl(data, detect(data), **options).remove_columns(ROW)


def test_each_row_keeps_its_number():
    rows = [{"text": "one"}, {"text": " "}, {"text": "three"}]
    data = Dataset.from_list(rows)
    assert for_trl(data, detect(data), on_bad_row="skip")[ROW] == [1, 3]
    pairs = Dataset.from_list(
        [TRL["preference", True], {**TRL["preference", True], "chosen": [assistant("four")]}]
    )
    assert for_trl(pairs, detect(pairs), unpair=True)[ROW] == [1, 1, 2, 2]


@pytest.mark.parametrize("kind, conversational", TRL)
def test_only_the_columns_of_the_format_remain(kind, conversational):
    row = TRL[kind, conversational]
    out = converted({**row, "other": 1})
    assert list(out) == [row]
    assert is_conversational(out[0]) is conversational


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("name", ["ultrafeedback", "hh"])
def test_real_preferences(method, name, request, caplog):
    path = request.getfixturevalue(name)
    rows = load_rows(path=path)
    format = require(rows, method, path.name)
    bad = 6 if name == "ultrafeedback" else 4
    with pytest.raises(DataError, match=rf"{path.name}, row \d+: .*\({bad - 1} more bad rows\)"):
        for_trl(rows, format, source=path.name)
    out = for_trl(rows, format, unpair=method == "kto", on_bad_row="skip", source=path.name)
    expected = ["prompt", "chosen", "rejected"] if method == "dpo" else ["prompt", "completion", "label"]
    assert set(out.column_names) == {*expected, ROW}
    assert len(out) == (len(rows) - bad) * (1 if method == "dpo" else 2)
    assert f"left out {bad} of {len(rows):,} rows" in caplog.text
    if name == "hh":
        assert all(prompt.endswith("\n\nAssistant:") for prompt in out["prompt"])


def test_gsm8k_demonstrations(gsm8k):
    columns = {"prompt": "question", "completion": "answer"}
    rows = load_rows(path=gsm8k, split="train[:50]", columns=columns)
    out = for_trl(rows, require(rows, "sft", "gsm8k.jsonl"))
    assert out.column_names == ["prompt", "completion", ROW] and len(out) == 50


def test_unpaired_as_trl_does_it():
    pairs = [TRL["preference", True], {**TRL["preference", True], "chosen": [assistant("four")]}]
    ours = converted(*pairs, unpair=True)
    theirs = unpair_preference_dataset(Dataset.from_list(pairs))

    def key(row):
        return str(sorted(row.items()))

    assert sorted(map(key, ours)) == sorted(map(key, theirs))


def test_system_message_and_template_arguments(qwen2):
    encoder = Encoder(qwen2, system="Be kind.", chat_template_kwargs={"enable_thinking": False})
    system = {"role": "system", "content": "Be kind."}
    pair = converted(TRL["preference", True], encoder=encoder)[0]
    assert pair["prompt"] == [system, *ASK] and pair["chosen"] == GOOD and pair["rejected"] == BAD
    assert pair["chat_template_kwargs"] == {"enable_thinking": False}
    talk = converted(TRL["language_modeling", True], system="Be kind.")[0]
    assert talk["messages"] == [system, *ASK, *GOOD] and "chat_template_kwargs" not in talk
    assert "chat_template_kwargs" not in converted(TRL["preference", False], encoder=encoder)[0]


def test_sharegpt_turns_become_messages():
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
    assert converted({"conversations": turns})[0] == {"messages": [user("hi"), assistant("yo")]}


def test_rows_that_a_trainer_would_cut_are_bad(qwen2):
    encoder = Encoder(qwen2, max_length=12)
    for row in (
        {"text": "word " * 20},
        {"prompt": "p", "completion": "word " * 20},
        {"prompt": "word " * 20},
        {"prompt": "p", "chosen": "a", "rejected": "word " * 20},
    ):
        with pytest.raises(DataError, match=r"row 1: .* has \d+ tokens; the limit is model.max_length=12"):
            converted(row, encoder=encoder)


def test_labels_from_tables_are_true_or_false(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion,label\np,a,True\np,b,0\np,c,perhaps\n")
    rows = load_rows(path=tmp_path / "a.csv")
    format = require(rows, "kto", "a.csv")
    assert for_trl(rows, format, on_bad_row="skip")["label"] == [True, False]
    with pytest.raises(DataError, match="row 3: label is 'perhaps', expected true or false"):
        for_trl(rows, format, source="a.csv")


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": "p", "completion": " "}, "completion is empty"),
        ({"prompt": None, "completion": "c"}, "prompt is empty"),
        ({"prompt": 3, "completion": "c"}, "prompt is the value 3, expected text"),
        ({"prompt": "p", "completion": ["a"]}, "completion is a list, expected text"),
        ({"text": ""}, "text is empty"),
        ({"messages": [user("hi"), assistant("")]}, "messages ends with an empty message"),
        ({"messages": [{"role": "user", "content": 3}]}, "content of a message in messages is the value 3"),
        ({"prompt": ASK, "completion": "plain"}, "completion is text, expected messages"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "rejected is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": 3}, "rejected is not text"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt is empty"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
            "share no first message",
        ),
        ({"chosen": "a", "rejected": [user("c")]}, "not of one type"),
    ],
)
def test_bad_rows(row, reason):
    with pytest.raises(DataError, match=rf"dataset, row 1: .*{reason}"):
        converted(row)
