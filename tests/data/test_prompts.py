from __future__ import annotations

import json
import math

import pytest
import torch
from datasets import Dataset

from rlhf_peft.data.encode import Encoder
from rlhf_peft.data.load import hold_out, load_rows
from rlhf_peft.data.prompts import PromptStream, encode_pairs, encode_prompts
from rlhf_peft.errors import DataError

from .conftest import assistant, user

GSM8K = {"prompt": "question"}


# --- real rows ---


def test_gsm8k_prompts(gsm8k, chat):
    encoder = Encoder(chat, max_length=512)
    rows = load_rows(path=gsm8k, split="train[:40]", columns=GSM8K)
    prompts = encode_prompts(rows, encoder, max_new_tokens=64, source="gsm8k.jsonl", stage="rl")
    assert len(prompts) == 40
    assert prompts[3].index == 3 and set(prompts[3].columns) == {"prompt", "answer"}
    assert prompts[3].columns["answer"] == rows[3]["answer"]
    assert encoder.text(prompts[3].ids.tolist()) == rows[3]["prompt"]
    assert prompts[0].ids.dtype == torch.int64


@pytest.mark.parametrize("name", ["ultrafeedback", "hh"])
def test_real_preferences_become_pairs_and_prompts(name, chat, request):
    path = request.getfixturevalue(name)
    rows = load_rows(path=path, split="train[:60]")
    encoder = Encoder(chat, max_length=4096)
    pairs = encode_pairs(rows, encoder, on_bad_row="skip", source=path.name)
    assert len(pairs) >= 58
    for pair in pairs:
        assert 0 < pair.prompt_length < min(len(pair.chosen_ids), len(pair.rejected_ids))
        assert torch.equal(pair.chosen_ids[: pair.prompt_length], pair.rejected_ids[: pair.prompt_length])
        assert pair.chosen_ids[-1] == pair.rejected_ids[-1] == encoder.eos_id
    prompts = encode_prompts(rows, encoder, source=path.name)
    assert len(prompts) == 60
    by_row = {prompt.index: prompt for prompt in prompts}
    assert all(torch.equal(by_row[p.index].ids, p.chosen_ids[: p.prompt_length]) for p in pairs)


def test_equal_answers_are_bad_rows(ultrafeedback, minimind, caplog):
    rows = load_rows(path=ultrafeedback)
    same = [place for place, row in enumerate(rows) if row["chosen"] == row["rejected"]]
    assert len(same) == 4
    picked = rows.select([0, 1, *same])
    encoder = Encoder(minimind)
    with pytest.raises(DataError) as caught:
        encode_pairs(picked, encoder, source="ultrafeedback.jsonl", stage="reward_model")
    assert str(caught.value) == (
        f"ultrafeedback.jsonl, row {same[0] + 1:,}: chosen and rejected are the same (3 more bad rows). Mend "
        "or remove it, or leave such rows out: stages.reward_model.dataset.on_bad_row=skip"
    )
    pairs = encode_pairs(picked, encoder, source="ultrafeedback.jsonl", on_bad_row="skip")
    assert [pair.index for pair in pairs] == [0, 1]
    assert "left out 4 of 6 rows: 4 with chosen equal to rejected" in caplog.text


def test_sentiment_pairs(stories):
    rows = Dataset.from_dict({"chosen": ["a fine film . "], "rejected": ["a dull film . "]})
    (pair,) = encode_pairs(rows, Encoder(stories))
    assert pair.prompt_length == 1 and pair.chosen_ids[0] == stories.bos_token_id


# --- lengths and bad rows ---


def test_a_prompt_longer_than_the_context(jsonl, qwen2, caplog):
    rows = load_rows(path=jsonl({"prompt": "short"}, {"prompt": "word " * 50}, {"prompt": "end"}))
    encoder = Encoder(qwen2, max_length=40)
    with pytest.raises(DataError) as caught:
        encode_prompts(rows, encoder, max_new_tokens=16, source="rows.jsonl", stage="rl")
    assert str(caught.value) == (
        "rows.jsonl, row 2: the prompt has 51 tokens, 67 with max_new_tokens=16; the limit is "
        "model.max_length=40. Shorten it, set a larger model.max_length where the model allows it, or leave "
        "such rows out: stages.rl.dataset.on_bad_row=skip"
    )
    kept = encode_prompts(rows, encoder, max_new_tokens=16, source="rows.jsonl", on_bad_row="skip")
    assert [prompt.index for prompt in kept] == [0, 2]
    assert "left out 1 of 3 rows: 1 too long (first: row 2)" in caplog.text
    with pytest.raises(DataError, match="No row is left to work with; row 1"):
        encode_prompts(rows, encoder, max_new_tokens=40, on_bad_row="skip")


def test_row_numbers_survive_slices_and_hold_outs(jsonl, qwen2):
    path = jsonl(*({"prompt": f"number {n}"} for n in range(20)))
    train, held = hold_out(load_rows(path=path, split="train[5:15]"), 0.3, seed=1)
    for rows in (train, held):
        for prompt in encode_prompts(rows, Encoder(qwen2)):
            assert prompt.columns == {"prompt": f"number {prompt.index}"}


@pytest.mark.parametrize("bad", ["", "  ", None])
def test_empty_prompts(jsonl, qwen2, bad):
    rows = load_rows(path=jsonl({"prompt": "fine"}, {"prompt": bad}))
    with pytest.raises(DataError, match="row 2: prompt is empty"):
        encode_prompts(rows, Encoder(qwen2))


def test_a_long_pair_is_a_bad_row(jsonl, qwen2):
    rows = load_rows(path=jsonl({"prompt": "p", "chosen": "word " * 9, "rejected": "b"}))
    with pytest.raises(DataError, match=r"row 1: the chosen answer with its prompt has 12 tokens"):
        encode_pairs(rows, Encoder(qwen2, max_length=8))


def test_texts_without_a_shared_prompt_are_no_prompts(jsonl, qwen2):
    rows = load_rows(path=jsonl({"chosen": "good", "rejected": "bad"}))
    with pytest.raises(DataError, match="prompt is empty"):
        encode_prompts(rows, Encoder(qwen2))


def test_prompts_beside_answers_that_are_missing(jsonl, qwen2):
    rows = load_rows(path=jsonl({"prompt": "p", "chosen": None, "rejected": None}, {"chosen": "a"}))
    with pytest.raises(DataError, match="row 2: prompt is empty"):
        encode_prompts(rows, Encoder(qwen2))


def test_pairs_need_pairs(jsonl, qwen2):
    with pytest.raises(DataError, match="have the columns chosen and rejected"):
        encode_pairs(load_rows(path=jsonl({"prompt": "x"})), Encoder(qwen2))


# --- columns ---


def test_the_system_message_stands_in_the_prompt_column(chat):
    rows = Dataset.from_list([{"prompt": [user("hi")], "level": 3}])
    (prompt,) = encode_prompts(rows, Encoder(chat, system="Be kind."))
    assert prompt.columns == {"prompt": [{"role": "system", "content": "Be kind."}, user("hi")], "level": 3}


def test_conversational_pairs_give_prompts(chat):
    ask = [user("hi")]
    rows = Dataset.from_list([{"chosen": [*ask, assistant("yo")], "rejected": [*ask, assistant("no")]}])
    (prompt,) = encode_prompts(rows, Encoder(chat))
    assert prompt.columns["prompt"] == ask


def test_soft_labels_and_margins(tmp_path, jsonl, qwen2):
    def pair(**more):
        return {"prompt": "p", "chosen": "a", "rejected": "b", **more}

    def encoded(*rows):
        return [(p.label, p.margin) for p in encode_pairs(load_rows(path=jsonl(*rows)), Encoder(qwen2))]

    assert encoded(pair()) == [(1.0, 0.0)]
    assert encoded(pair(chosen_prob=0.7, margin=2), pair()) == [(0.7, 2.0), (1.0, 0.0)]
    for label in (0.0, 0.25, 3, "harmless"):  # in no stage; `require` says so
        assert encoded(pair(label=label)) == [(1.0, 0.0)]
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,chosen_prob\np,a,b,0.6\n")
    assert encode_pairs(load_rows(path=tmp_path / "a.csv"), Encoder(qwen2))[0].label == 0.6


@pytest.mark.parametrize(
    "column, value",
    [
        ("chosen_prob", 1.5),
        ("chosen_prob", "maybe"),
        ("chosen_prob", True),
        ("margin", math.inf),
        ("margin", 1e308),
    ],
)
def test_wrong_figures(jsonl, qwen2, column, value):
    rows = load_rows(path=jsonl({"prompt": "p", "chosen": "a", "rejected": "b", column: value}))
    with pytest.raises(DataError, match=r"row 1: .*expected"):
        encode_pairs(rows, Encoder(qwen2))


# --- the stream ---


@pytest.fixture
def seven(qwen2):
    return encode_prompts(Dataset.from_dict({"prompt": list("abcdefg")}), Encoder(qwen2))


def indices(prompts):
    return [prompt.index for prompt in prompts]


def test_each_prompt_once_an_epoch_in_another_order(seven):
    stream = PromptStream(seven, seed=1)
    epochs = [indices(stream.next(7)) for _ in range(6)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert epochs != [indices(PromptStream(seven, seed=2).next(7)) for _ in range(6)]


@pytest.mark.parametrize("taken", [0, 1, 6, 7, 8, 30])
def test_resume_goes_on_as_if_never_stopped(seven, taken):
    whole, first, second = (PromptStream(seven, seed=5) for _ in range(3))
    whole.next(taken), first.next(taken)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [indices(whole.next(4)) for _ in range(9)] == [indices(second.next(4)) for _ in range(9)]


def test_order_does_not_depend_on_the_step_size(seven):
    one, many = PromptStream(seven, seed=5), PromptStream(seven, seed=5)
    assert [indices(one.next(1))[0] for _ in range(20)] == indices(many.next(20))


def test_other_random_numbers_do_not_move_the_stream(seven):
    import random

    stream = PromptStream(seven, seed=5)
    random.seed(0), torch.manual_seed(0)
    assert indices(stream.next(20)) == indices(PromptStream(seven, seed=5).next(20))


def test_a_changed_dataset_is_refused(seven):
    state = PromptStream(seven, seed=5).state_dict()
    with pytest.raises(DataError, match="had 7 prompts, now it has 6"):
        PromptStream(seven[:6], seed=5).load_state_dict(state)
    with pytest.raises(DataError, match="no prompts"):
        PromptStream([], seed=5)
