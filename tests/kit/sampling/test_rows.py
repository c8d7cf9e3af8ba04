"""Stop strings are found when they are complete, and only a window is read for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_peft.kit.sampling.rows import Row, stops
from rlhf_peft.plugin import Request, SamplingParams

BYTES = 256
STOPS = [["ab"], ["é"], [" b", "zz"], ["日本"], ["a b a"], ["\n\n"]]


def decode(ids):
    """A byte-level tokenizer with words: 0-255 are bytes, 256 a special token, others words."""
    words = ["", " the", "ab", "日", "a b", " ", "本 and much more of it", "\n"]
    return b"".join(bytes([i]) if i < BYTES else words[i - BYTES].encode() for i in ids).decode(
        errors="replace"
    )


letters = st.sampled_from([*b"abz \n", *"é日本".encode(), *range(BYTES, BYTES + 8)])


@given(st.lists(letters, max_size=80), st.sampled_from(STOPS))
def test_a_window_finds_what_the_whole_text_has(tokens, stop):
    for end in range(1, len(tokens) + 1):
        whole = any(string in decode(tokens[:end]) for string in stop)
        assert stops(tokens[:end], stop, decode) == whole
        if whole:
            return


@pytest.mark.parametrize("stop", STOPS)
def test_special_tokens_between_the_parts_do_not_hide_a_stop(stop):
    parts = list(stop[0].encode())
    between = [BYTES] * 50
    tokens = [*b"zyx", *between, *[t for part in parts for t in (part, *between)][: -len(between)]]
    assert stops(tokens, stop, decode)
    assert not stops(tokens[:-1], stop, decode)


def test_a_long_last_token_does_not_push_the_stop_out():
    assert stops([*[97] * 30, BYTES + 3, *[BYTES] * 40, BYTES + 6], ["日本"], decode)


def test_only_a_window_is_read():
    read = []
    stops([97] * 5000, ["xyz"], lambda ids: read.append(len(ids)) or decode(ids))
    assert max(read) < 30


def test_tokens_and_text_are_decoded_as_the_real_tokenizer_does(tiny_base, view):
    text = "The old fox told a story; nobody in the village had heard it before. The end."
    ids = tiny_base.tokenizer(text).input_ids
    stop = ("nobody in the",)
    first = next(n for n in range(1, len(ids)) if stop[0] in view.decode(ids[:n]))
    assert len(tiny_base.tokenizer(stop[0]).input_ids) > 1
    row = Row(Request(None, 0, 0, SamplingParams(100, stop=stop)), 100)
    for token in ids:
        row.take(token, 0.0, view)
    assert row.finish == "stop" and row.tokens == ids[:first]
