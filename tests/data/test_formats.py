from __future__ import annotations

import pytest
from datasets import Dataset

from rlhf_peft.data.formats import detect, require
from rlhf_peft.data.load import load_rows
from rlhf_peft.errors import DataError

from .conftest import assistant, user

ASK, GOOD, BAD = [user("2+2?")], [assistant("4")], [assistant("5")]
TRL = {  # every format that TRL documents, plain and conversational
    ("language_modeling", False): {"text": "The sky is blue."},
    ("language_modeling", True): {"messages": [*ASK, *GOOD]},
    ("prompt_only", False): {"prompt": "The sky is"},
    ("prompt_only", True): {"prompt": ASK},
    ("prompt_completion", False): {"prompt": "The sky is", "completion": " blue."},
    ("prompt_completion", True): {"prompt": ASK, "completion": GOOD},
    ("preference", False): {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    ("preference", True): {"prompt": ASK, "chosen": GOOD, "rejected": BAD},
    ("unpaired_preference", False): {"prompt": "The sky is", "completion": " blue.", "label": True},
    ("unpaired_preference", True): {"prompt": ASK, "completion": GOOD, "label": True},
}
METHODS = {
    "sft": {"language_modeling", "prompt_completion", "unpaired_preference"},
    "dpo": {"preference"},
    "kto": {"preference", "unpaired_preference"},
    "reward_model": {"preference"},
    "rl": {"prompt_only", "prompt_completion", "preference", "unpaired_preference"},
}


@pytest.mark.parametrize("kind, conversational", TRL)
def test_every_format_is_detected(kind, conversational):
    row = TRL[kind, conversational]
    format = detect(Dataset.from_list([{**row, "other": 1}]))
    assert (format.kind, format.conversational) == (kind, conversational)
    assert format.columns == tuple(row)


def test_implicit_prompts_and_sharegpt():
    both = detect(Dataset.from_list([{"chosen": [*ASK, *GOOD], "rejected": [*ASK, *BAD]}]))
    assert (both.kind, both.conversational, both.implicit_prompt) == ("preference", True, True)
    turns = detect(Dataset.from_list([{"conversations": [{"from": "human", "value": "hi"}]}]))
    assert (turns.kind, turns.conversational) == ("language_modeling", True)
    assert detect(Dataset.from_list([{"other": "x"}])) is None
    assert detect(Dataset.from_list([{"prompt": None}, {"prompt": ASK}])).conversational


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind, conversational", TRL)
def test_methods_take_the_formats_they_can_use(method, kind, conversational):
    rows = Dataset.from_list([TRL[kind, conversational]])
    if kind in METHODS[method]:
        assert require(rows, method, "rows.jsonl").conversational is conversational
    else:
        with pytest.raises(DataError, match=r"rows\.jsonl: found columns .* needs .*Map them"):
            require(rows, method, "rows.jsonl")


def test_the_message_of_the_contract(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("Question;Good;Bad\nwhy?;because;no\n")
    with pytest.raises(DataError) as caught:
        require(load_rows(path=path), "dpo", "pairs.csv", stage="preference")
    assert str(caught.value) == (
        'pairs.csv: found columns Question, Good, Bad (separator ";"). A preference stage needs '
        "prompt+chosen+rejected, or chosen+rejected. Map them:  "
        "stages.preference.dataset.columns='{prompt: Question, chosen: Good, rejected: Bad}'"
    )


def test_the_hint_of_gsm8k_works(gsm8k):
    rows = load_rows(path=gsm8k, split="train[:20]")
    with pytest.raises(
        DataError, match=r"stages.sft.dataset.columns='\{prompt: question, completion: answer\}'"
    ):
        require(rows, "sft", "gsm8k.jsonl")
    with pytest.raises(DataError, match=r"stages.maths.dataset.columns='\{prompt: question\}'"):
        require(rows, "rl", "gsm8k.jsonl", stage="maths")
    mapped = load_rows(path=gsm8k, split="train[:20]", columns={"prompt": "question", "completion": "answer"})
    assert require(mapped, "sft", "gsm8k.jsonl").kind == "prompt_completion"
    assert require(mapped, "rl", "gsm8k.jsonl").kind == "prompt_only"


def test_real_preferences(ultrafeedback, hh):
    for path, implicit in ((ultrafeedback, False), (hh, True)):
        rows = load_rows(path=path, split="train[:5]")
        for method in ("dpo", "kto", "reward_model"):
            format = require(rows, method, path.name)
            assert (format.kind, format.implicit_prompt) == ("preference", implicit)
        assert require(rows, "rl", path.name).kind == ("preference" if implicit else "prompt_only")


@pytest.mark.parametrize("method, said", [("dpo", True), ("kto", True), ("reward_model", False)])
def test_margins_are_read_by_reward_models_alone(method, said, caplog):
    rows = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"], "margin": [1.0]})
    require(rows, method, "x")
    assert ("only a reward_model stage reads margins" in caplog.text) is said


@pytest.mark.parametrize("name", ["images", "history", "chat_template_kwargs", "system_prompt", "input"])
def test_columns_that_say_something_and_are_not_read_are_named(name, caplog):
    require(Dataset.from_dict({"prompt": ["a"], "completion": ["b"], name: ["c"], "id": [1]}), "sft", "x")
    assert f"x: not trained on, in any stage: the columns {name}." in caplog.text
