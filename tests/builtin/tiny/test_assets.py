"""The shipped model folder: small, complete, loadable, and right in its chat format."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlhf_peft
from rlhf_peft.builtin.tiny.text import demonstrations, gold_score, pretraining_texts, prompts

FOLDER = Path(rlhf_peft.__path__[0]) / "assets" / "tiny"
WORLD = [row["completion"][0]["content"] for row in demonstrations(500, 11)]


@cache
def load_tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(name="tokenizer")
def _tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


def test_folder_is_small_and_holds_no_pickle():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors"}


def test_model_shapes_suit_blocks_of_64(model):
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) == 4 * 7 + 1
    assert all(size % 64 == 0 for module in linear for size in (module.in_features, module.out_features))
    assert model.config.model_type == "llama"
    assert model.dtype == torch.float32


def test_special_tokens_are_distinct_and_known_to_the_model(model, tokenizer):
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert None not in ids
    assert len(set(ids)) == 4
    assert [model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id] == ids[:3]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)
    named = json.loads((FOLDER / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert named in {"PreTrainedTokenizerFast", "TokenizersBackend"}


@given(st.one_of(st.text(max_size=80), st.sampled_from(WORLD)))
@settings(max_examples=150, deadline=None)
def test_tokenizer_gives_back_any_text(text):
    tokenizer = load_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_prompt_is_a_prefix_of_the_whole_chat(tokenizer):
    for row in demonstrations(50, 0):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
        assert whole[: len(prompt)] == prompt
        assert whole[-1] == tokenizer.eos_token_id
        assert whole.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(whole[len(prompt) : -1]) == row["completion"][0]["content"]


def test_chat_takes_system_and_several_turns_and_marks_what_the_assistant_says(tokenizer):
    chat = next(row["messages"] for row in pretraining_texts(2000, 1) if len(row.get("messages", ())) == 5)
    rendered = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    said = [
        token for token, mark in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True) if mark
    ]
    end = tokenizer.eos_token
    assert tokenizer.decode(said) == chat[2]["content"] + end + chat[4]["content"] + end
    with pytest.raises(Exception, match="Unknown role: judge"):
        tokenizer.apply_chat_template([{"role": "judge", "content": "Well."}])


def test_model_answers_questions_it_has_not_seen(model, tokenizer):
    rows = [row["prompt"] for row in prompts(64, 0, split="test")]
    inputs = tokenizer.apply_chat_template(
        rows, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    torch.manual_seed(0)
    output = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=64)
    output = output[:, inputs["input_ids"].shape[1] :]
    assert (output == tokenizer.eos_token_id).any(1).float().mean() > 0.95
    answers = tokenizer.batch_decode(output, skip_special_tokens=True)
    scores = [gold_score(row, answer) for row, answer in zip(rows, answers, strict=True)]
    assert -0.2 < sum(scores) / len(scores) < 0.4
    assert len(set(answers)) > 60
