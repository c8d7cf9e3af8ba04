"""One notion of the end of an answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from rlhf_peft.engine import BaseSpec
from rlhf_peft.engine.ends import end_ids, turn_end


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(BaseSpec("builtin:tiny").location)


def template(turn: str) -> str:
    return "{% for m in messages %}<|m.role|>{{ m.content }}" + turn + "{% endfor %}"


def test_the_end_of_a_turn_is_an_end(tokenizer):
    """As with Qwen's base models: EOS is one token, the template ends turns with another."""
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert tokenizer.eos_token_id == end and end_ids(tokenizer) == {end}
    tokenizer.chat_template = template("<|end|>\n")
    tokenizer.eos_token = "<|pad|>"
    assert end_ids(tokenizer) == {end, tokenizer.pad_token_id}


@pytest.mark.parametrize(
    ("turn", "token"),
    [
        ("<|end|>", "<|end|>"),
        ("\n<|end|>\n", "<|end|>"),
        ("{{ eos_token }}", "<|end|>"),
        ("\n", None),
        ("", None),
        (" Human:", None),
        ("{{ nothing.at_all }}", None),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_only_a_token_of_its_own_ends_a_turn(tokenizer, turn, token):
    tokenizer.chat_template = template(turn)
    assert turn_end(tokenizer, {}) == (None if token is None else tokenizer.convert_tokens_to_ids(token))


def test_ids_of_the_generation_config_count_too(tokenizer):
    tokenizer.chat_template = None
    for listed, more in ((None, set()), (5, {5}), ([5, 6], {5, 6}), ([5, None], {5})):
        config = SimpleNamespace(eos_token_id=listed)
        assert end_ids(tokenizer, config) == {tokenizer.eos_token_id, *more}


def test_arguments_of_the_template_reach_it(tokenizer):
    tokenizer.chat_template = template("{{ '<|end|>' if closing else '' }}")
    assert turn_end(tokenizer, {}) is None
    assert turn_end(tokenizer, {"closing": True}) == tokenizer.convert_tokens_to_ids("<|end|>")
