"""The text of answers, where a template changes the prompt once it is answered, and ends that are written out."""

from __future__ import annotations

import pytest

from rlhf_peft.data.encode import Encoder
from rlhf_peft.data.rows import BadRow

from .conftest import assistant, user
from .test_completeness import TURN, calls
from .test_marks import CALLS

CLOSED = "<think>\n\n</think>\n\n"
THINKS = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"


def pair(tokenizer, monkeypatch, answer, head="", opening=CLOSED):
    turns = head + TURN.replace("TURN", THINKS + CALLS).replace(
        "assistant\n{% endif", f"assistant\n{opening}{{% endif"
    )
    monkeypatch.setattr(tokenizer, "chat_template", turns)
    row = {"prompt": [user("w?")], "chosen": [answer], "rejected": [assistant("i")]}
    prompt, (chosen, _) = Encoder(tokenizer).answers(row, "chosen", "rejected")
    return tokenizer.decode(prompt), tokenizer.decode(chosen)


@pytest.mark.parametrize(
    "answer, written",
    [
        (assistant("n"), "n"),
        (assistant("<"), "<"),
        (assistant("<think>\nhm\n</think>\n\nx"), "<think>\nhm\n</think>\n\nx"),
        ({**assistant("yes"), "reasoning_content": "hm"}, "<think>\nhm\n</think>\n\nyes"),
        (calls(city="Oslo"), 'get_weather{"city": "Oslo"}'),
        ({**calls(city="Oslo"), "content": None}, 'get_weather{"city": "Oslo"}'),
    ],
)
def test_answers_stand_after_the_prompt_as_sampling_sees_it(qwen2, monkeypatch, answer, written):
    prompt, chosen = pair(qwen2, monkeypatch, answer)
    assert prompt.endswith("assistant\n" + CLOSED) and chosen == written + "<|im_end|>"


def test_an_answer_that_cannot_be_found_is_refused(qwen2, monkeypatch):
    """A part of the old text must never be taken for an answer."""
    with pytest.raises(BadRow, match="rewrites the answer beyond recognition"):
        pair(qwen2, monkeypatch, assistant("i"), head="{{ strftime_now('%H:%M:%S.%f') }}")


def ids(tokenizer, row):
    return tokenizer.decode(Encoder(tokenizer).completion(row))


@pytest.mark.parametrize("written", ["b<|im_end|>", "b<|im_end|>\n", "b<|im_end|><|im_end|>", "b"])
def test_an_end_that_is_written_out_is_not_doubled(qwen2, written):
    assert ids(qwen2, {"prompt": "a", "completion": written}) == "ab<|im_end|>"
    text = ids(qwen2, {"messages": [user("a"), assistant(written), user("c"), assistant(written)]})
    assert text.count("b<|im_end|>\n<|im_start|>") == 1 and text.endswith("assistant\nb<|im_end|>")
    pair = {"prompt": [user("a")], "completion": [assistant(written)]}
    assert ids(qwen2, pair).endswith("assistant\nb<|im_end|>")


def test_thoughts_on_both_sides_of_an_unfinished_answer(minimind):
    think = {"reasoning_content": "hm"}
    row = {"prompt": [user("a"), {**assistant("I "), **think}], "completion": [{**assistant("am"), **think}]}
    with pytest.raises(BadRow, match="both hold thoughts"):
        Encoder(minimind).completion(row)


def test_a_prompt_that_ends_with_a_call_is_not_continued_inside_of_it(qwen2, monkeypatch):
    monkeypatch.setattr(qwen2, "chat_template", TURN.replace("TURN", CALLS))
    asked = [user("w?"), calls(city="Oslo")]
    prompt = qwen2.decode(Encoder(qwen2).prompt({"prompt": asked}))
    assert prompt.endswith('get_weather{"city": "Oslo"}<|im_end|>\n<|im_start|>assistant\n')
    assert ids(qwen2, {"prompt": asked, "completion": [assistant("x")]}) == prompt + "x<|im_end|>"
