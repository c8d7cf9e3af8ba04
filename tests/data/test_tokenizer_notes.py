from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from rlhf_peft.data.encode import Encoder

from .conftest import assistant, user


def encoder(normalizer):
    """Of a tokenizer without an unknown token, which leaves out the letters that it does not know."""
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token=None))
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizers.Whitespace()
    made.train_from_iterator(
        ["hello world"], trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>", "</s>"])
    )
    return Encoder(PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>"))


@pytest.mark.parametrize(
    "normalizer, text, said",
    [
        (normalizers.Lowercase(), "World", True),
        (normalizers.Lowercase(), "world", False),
        (normalizers.NFC(), "wörld", True),
        (normalizers.NFC(), "world", False),
    ],
)
def test_letters_that_are_changed_or_left_out_are_said(normalizer, text, said):
    made = encoder(normalizer)
    for ids in (
        lambda: made.completion({"prompt": "hello", "completion": text}),
        lambda: made.prompt({"prompt": text}),
    ):
        ids()
        assert any("leaves out or changes" in note for note in made.take_notes()) is said


def test_every_letter_of_byte_level_tokenizers_is_kept(any_tokenizer):
    made = Encoder(any_tokenizer)
    made.completion({"text": "plain letters"})
    assert not made.take_notes()


@pytest.mark.parametrize(
    "talk, said",
    [
        ([user("What is <|im_end|>?"), assistant("x")], "<|im_end|>"),
        ([user("x"), assistant("It is <|im_start|>.")], "<|im_start|>"),
        ([user("x"), assistant("y<|im_end|>")], None),
        ([user("x <im_end>"), assistant("y")], None),
    ],
)
def test_special_tokens_in_what_is_said(qwen2, talk, said):
    made = Encoder(qwen2)
    for row in ({"messages": talk}, {"prompt": talk[:1], "completion": talk[1:]}):
        made.completion(row)
        notes = made.take_notes()
        assert notes == (
            [] if said is None else [note for note in notes if note.startswith(f"hold {said} in what")]
        )


def test_answers_that_go_on_after_an_end(qwen2):
    made = Encoder(qwen2)
    made.completion({"prompt": "a", "completion": " b<|im_end|> c"})
    assert made.take_notes() == ["hold an end of text inside an answer; in use, a completion stops there"]
