from __future__ import annotations

from types import SimpleNamespace

import pytest
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from rlhf_peft.data.encode import Encoder
from rlhf_peft.data.formats import detect, require
from rlhf_peft.data.load import load_rows
from rlhf_peft.data.rows import ROW
from rlhf_peft.data.trl_rows import for_trl
from rlhf_peft.errors import DataError

from .conftest import assistant, user
from .test_formats import ASK, GOOD, TRL


def converted(encoder, *rows, **options):
    """The rows for TRL."""
    data = Dataset.from_list(list(rows))
    return for_trl(data, detect(data), encoder, **options)


def prepared(trainer, config, tokenizer, tmp_path, *rows, **fields):
    """The same rows as a trainer of TRL's prepares them itself."""
    args = config(output_dir=str(tmp_path), max_length=None, use_cpu=True, bf16=False)
    itself = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, **fields)
    rest = (False, None) if trainer is SFTTrainer else ()
    return trainer._prepare_dataset(itself, Dataset.from_list(list(rows)), tokenizer, args, *rest, "train")


def assert_same(ours, theirs, names):
    """Ours stops at the end of the last turn; a template may write a line break after it."""
    for name in names:
        for mine, other in zip(ours[name], theirs[name], strict=True):
            assert mine == other[: len(mine)] and len(other) - len(mine) in (0, 1)


def test_each_row_keeps_its_number(qwen2):
    rows = [{"text": "one"}, {"text": " "}, {"text": "three"}]
    data = Dataset.from_list(rows)
    assert for_trl(data, detect(data), Encoder(qwen2), on_bad_row="skip")[ROW] == [1, 3]
    pairs = [TRL["preference", True], {**TRL["preference", True], "chosen": [assistant("four")]}]
    assert converted(Encoder(qwen2), *pairs, unpair=True)[ROW] == [1, 1, 2, 2]


@pytest.mark.parametrize("conversational", [False, True])
def test_demonstrations_are_those_of_trl(chat, conversational, tmp_path):
    for kind, only in (
        ("prompt_completion", True),
        ("prompt_completion", False),
        ("language_modeling", False),
    ):
        row = TRL[kind, conversational]
        ours = converted(Encoder(chat), row, completion_only=only)
        theirs = prepared(SFTTrainer, SFTConfig, chat, tmp_path, row, completion_only_loss=only)
        assert ours.column_names == ["input_ids", "labels", ROW]
        assert_same(ours, theirs, ["input_ids", "labels"])


@pytest.mark.parametrize("conversational", [False, True])
def test_pairs_are_those_of_trl(chat, conversational, tmp_path):
    rows = [TRL["preference", conversational]]
    names = ["prompt_ids", "chosen_ids", "rejected_ids"]
    ours = converted(Encoder(chat), *rows)
    assert ours.column_names == [*names, ROW]
    assert_same(ours, prepared(DPOTrainer, DPOConfig, chat, tmp_path, *rows), names)


@pytest.mark.parametrize("conversational", [False, True])
def test_labelled_answers_are_those_of_trl(chat, conversational, tmp_path):
    weights = {"calculate_KL": False, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    names = ["prompt_ids", "completion_ids"]
    for kind, unpair in (("unpaired_preference", False), ("preference", True)):
        row = TRL[kind, conversational]
        ours = converted(Encoder(chat), row, unpair=unpair)
        theirs = prepared(KTOTrainer, KTOConfig, chat, tmp_path, row, **weights)
        assert ours.column_names == [*names, "label", ROW]
        assert_same(ours, theirs, names)
        assert ours["label"] == list(map(bool, theirs["label"]))


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("name", ["ultrafeedback", "hh"])
def test_real_preferences(method, name, request, minimind, caplog):
    path = request.getfixturevalue(name)
    rows = load_rows(path=path, split="train[:300]")
    format = require(rows, method, path.name)
    out = for_trl(
        rows, format, Encoder(minimind), unpair=method == "kto", on_bad_row="skip", source=path.name
    )
    left_out = len(rows) - len(out) // (2 if method == "kto" else 1)
    assert 0 <= left_out < 6 and (f"left out {left_out} of 300 rows" in caplog.text) == (left_out > 0)
    if name == "hh":
        assert all(minimind.decode(ids).endswith("\n\nAssistant:") for ids in out["prompt_ids"])


def test_sharegpt_turns_become_messages(qwen2):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
    ours = converted(Encoder(qwen2), {"conversations": turns})
    assert (
        ours["input_ids"]
        == converted(Encoder(qwen2), {"messages": [user("hi"), assistant("yo")]})["input_ids"]
    )


# --- what is trained on ---


def trained(tokenizer, dataset):
    """The text of the tokens that a demonstration trains on."""
    row = dataset[0]
    return tokenizer.decode(
        [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    )


def test_parts_that_are_trained_on(qwen2):
    row = TRL["prompt_completion", True]
    assert trained(qwen2, converted(Encoder(qwen2), row)) == "4<|im_end|>"
    assert trained(qwen2, converted(Encoder(qwen2), row, completion_only=False)).endswith(
        "assistant\n4<|im_end|>"
    )
    assert trained(qwen2, converted(Encoder(qwen2), {"prompt": ASK, "completion": "4"})) == "4<|im_end|>"


TALK = {"messages": [user("2+2?"), assistant("4"), user("and 3+3?"), assistant("6")]}


def test_turns_of_the_assistant_alone(qwen2, minimind):
    """Whether the template marks them or not."""
    for tok in (qwen2, minimind):
        assert "{% generation %}" not in tok.chat_template
        text = trained(tok, converted(Encoder(tok), TALK, assistant_only=True))
        assert text.replace("<think>\n\n</think>\n\n", "") == "4<|im_end|>6<|im_end|>"


def test_turns_that_cannot_be_told_apart(qwen2, monkeypatch):
    """As Qwen3's template, which writes thoughts in the last turn alone."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    monkeypatch.setattr(qwen2, "chat_template", template)
    with pytest.raises(
        DataError, match=r"dataset, row 1: assistant_only_loss: .*Set assistant_only_loss=false"
    ):
        converted(Encoder(qwen2), TALK, assistant_only=True)
    assert converted(Encoder(qwen2), TALK)


# --- long rows ---

LONG = (
    {"text": "word " * 20},
    {"messages": [user("p"), assistant("word " * 20)]},
    {"prompt": "p", "completion": "word " * 20},
    {"prompt": "p", "completion": "word " * 20, "label": True},
    {"prompt": "p", "chosen": "a", "rejected": "word " * 20},
)


@pytest.mark.parametrize("row", LONG)
def test_long_rows_are_refused(qwen2, row):
    encoder = Encoder(qwen2, max_length=12)
    with pytest.raises(DataError, match=r"row 1: .* has \d+ tokens; the limit is model.max_length=12"):
        converted(encoder, row)


def test_long_rows_have_a_rule_of_their_own(qwen2, caplog):
    encoder, rows = Encoder(qwen2, max_length=12), ({"text": "short"}, {"text": ""}, LONG[0])
    with pytest.raises(
        DataError, match=r"row 3: .*Shorten it.*leave such rows out: stages.sft.dataset.on_long_row=skip"
    ):
        converted(encoder, *rows, on_bad_row="skip", on_long_row="error", stage="sft")
    with pytest.raises(DataError, match="row 2: text is empty"):
        converted(encoder, *rows, on_long_row="skip")
    assert converted(encoder, *rows, on_bad_row="skip")[ROW] == [1]
    assert "left out 2 of 3 rows: 1 with an empty text, 1 too long" in caplog.text


@pytest.mark.parametrize("row", LONG)
def test_long_rows_are_cut_where_the_recipe_says_so(qwen2, row, caplog):
    whole = converted(Encoder(qwen2), row)[0]
    made = converted(
        Encoder(qwen2, max_length=40 if "messages" in row else 12, truncation=True), row, on_long_row="cut"
    )[0]
    limit = 40 if "messages" in row else 12
    for name in ("input_ids", "labels", "completion_ids", "rejected_ids"):
        if name in made:
            room = limit - len(made.get("prompt_ids", ()))
            assert made[name] == whole[name][:room] and len(made[name]) == min(room, len(whole[name]))
    cut = len(whole.get("input_ids", [0] * 99)) > limit
    assert ("1 of 1 rows are longer than model.max_length" in caplog.text) == cut


def test_a_prompt_that_fills_the_model_cannot_be_cut(qwen2):
    encoder = Encoder(qwen2, max_length=12, truncation=True)
    with pytest.raises(DataError, match=r"row 1: the row has 2\d tokens"):
        converted(encoder, {"prompt": "word " * 20, "completion": "a"}, on_long_row="cut")


# --- bad rows ---


def test_labels_from_tables_are_true_or_false(tmp_path, qwen2):
    (tmp_path / "a.csv").write_text("prompt,completion,label\np,a,True\np,b,0\np,c,perhaps\n")
    rows = load_rows(path=tmp_path / "a.csv")
    format = require(rows, "kto", "a.csv")
    assert for_trl(rows, format, Encoder(qwen2), on_bad_row="skip")["label"] == [True, False]
    with pytest.raises(DataError, match="row 3: label is 'perhaps', expected true or false"):
        for_trl(rows, format, Encoder(qwen2), source="a.csv")


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": "p", "completion": " "}, "completion is empty"),
        ({"prompt": None, "completion": "c"}, "prompt is empty"),
        ({"prompt": 3, "completion": "c"}, "prompt is the value 3, expected text"),
        ({"prompt": "p", "completion": ["a"]}, "completion is a list, expected text"),
        ({"text": ""}, "text is empty"),
        ({"messages": [user("hi"), assistant("")]}, "messages ends with an empty message"),
        ({"messages": [{"role": "user", "content": 3}]}, "content of message 1 of messages is the value 3"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "rejected is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": 3}, "rejected is the value 3, expected text"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt is empty"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
            "share no first message",
        ),
        ({"chosen": "a", "rejected": [user("c")]}, "share no first message"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_prob": 0.2},
            "the rejected answer is the better",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "chosen_prob": 7}, "is 7, expected 0 to 1"),
        ({"prompt": ASK, "completion": GOOD, "tools": "none"}, "tools is text that is not JSON"),
    ],
)
def test_bad_rows(row, reason, qwen2):
    with pytest.raises(DataError, match=rf"dataset, row 1: .*{reason}"):
        converted(Encoder(qwen2), row)
