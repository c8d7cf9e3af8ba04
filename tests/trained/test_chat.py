"""Answers as they are written."""

import io
import sys
from copy import deepcopy

import pytest
import torch

from rlhf_peft.cli import execute
from rlhf_peft.engine import POLICY, REFERENCE
from rlhf_peft.errors import UsageError
from rlhf_peft.trained import open_run
from rlhf_peft.trained.chat import ChatSettings, Streamer, answer, encode, scores


@pytest.fixture(scope="module")
def opened(trained):
    return open_run(trained)


def test_pieces_make_the_whole_answer(opened):
    ids = encode(opened.base, [{"role": "user", "content": "Tell me about a fox."}], ChatSettings())
    pieces = []
    given = answer(opened.base, ids, ChatSettings(max_new_tokens=12), on_text=pieces.append)
    assert 0 < len(given) <= 12 and len(pieces) > 1
    assert "".join(pieces) == opened.base.tokenizer.decode(given, skip_special_tokens=True)


def test_the_same_seed_gives_the_same_answer_and_none_is_left_behind(opened):
    ids = encode(opened.base, [{"role": "user", "content": "Tell me about a fox."}], ChatSettings())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (answer(opened.base, ids, ChatSettings(seed=3, max_new_tokens=12)) for _ in range(2))
    assert one == two and torch.equal(torch.get_rng_state(), before)
    greedy = answer(opened.base, ids, ChatSettings(temperature=0.0, max_new_tokens=12))
    assert greedy == answer(opened.base, ids, ChatSettings(temperature=0.0, seed=9, max_new_tokens=12))


def test_half_a_letter_is_not_told(opened):
    class Bytes:
        def decode(self, ids, skip_special_tokens):
            return bytes(ids).decode("utf-8", "replace")

    for text in ("aé→b", "😀 hi", "日本", "é"):
        pieces = []
        streamer = Streamer(Bytes(), pieces.append)
        streamer.put(torch.tensor([1]))
        for byte in text.encode():
            streamer.put(torch.tensor([byte]))
        streamer.end()
        assert pieces == list(text)


def test_scores_are_those_of_the_heads(opened):
    ids = encode(opened.base, [{"role": "user", "content": "Tell me about a fox."}], ChatSettings())
    head_scores = scores(opened, ids)
    assert set(head_scores) == {"reward-0", "reward-1"} and head_scores["reward-0"] != head_scores["reward-1"]


def test_a_conversation_that_leaves_no_room_is_refused(opened):
    with pytest.raises(UsageError, match=r"Say /new"):
        encode(opened.base, [{"role": "user", "content": "a fox and a bear " * 40}], ChatSettings())


def test_through_a_pipe(trained, monkeypatch, capsys):
    lines = "Tell me about a fox.\n/seed 4\n/ref\n/score\n\n/new\nTell me about a fox.\n/temp x\n/what\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert execute(["chat", str(trained), "--max-new-tokens", "8"]) == 0
    out, err = capsys.readouterr()
    answers = out.splitlines()
    assert (
        len(answers) == 3 and answers[1].startswith(f"{REFERENCE}: ") and answers[2].startswith(f"{POLICY}: ")
    )
    assert (
        "seed 4" in err
        and "reward-0" in err
        and "expected a number, found 'x'" in err
        and "/what is unknown" in err
    )


def test_the_template_is_given_what_training_gave_it(opened):
    class Base:
        tokenizer, max_length = deepcopy(opened.base.tokenizer), 64
        eos_ids, vocab_size = opened.base.eos_ids, opened.base.vocab_size

    Base.tokenizer.chat_template = (
        "{{ thinking }} {% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    )
    ids = encode(
        Base, [{"role": "user", "content": "fox"}], ChatSettings(system="bear", template={"thinking": "lake"})
    )
    assert Base.tokenizer.decode(ids) == "lake system bear user fox "


def test_a_line_that_is_too_long_does_not_end_a_pipe(trained, monkeypatch, capsys):
    lines = f"{'a fox and a bear ' * 40}\nTell me about a fox.\nTell me about a fox.\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert execute(["chat", str(trained), "--max-new-tokens", "8"]) == 0
    out, err = capsys.readouterr()
    # Each line is a conversation of its own.
    first, second = out.splitlines()
    assert first == second and "Say /new" in err


def test_the_models_own_penalties_do_not_act(opened):
    ids = encode(opened.base, [{"role": "user", "content": "Tell me about a fox."}], ChatSettings())
    talk = ChatSettings(temperature=0.0, max_new_tokens=24)
    before = answer(opened.base, ids, talk)
    own = opened.base.lm.generation_config
    own.repetition_penalty = 5.0
    try:
        assert answer(opened.base, ids, talk) == before
    finally:
        own.repetition_penalty = None
