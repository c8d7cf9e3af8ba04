"""A prompt is encoded once, and its answers have the tokens that they have in the whole text."""

from __future__ import annotations

import copy
import random

import pytest
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from rlhf_peft.data import batches
from rlhf_peft.data.batches import in_batches
from rlhf_peft.data.encode import Encoder
from rlhf_peft.data.rows import BadRow
from rlhf_peft.data.tokens import tokenize
from rlhf_peft.data.word_borders import EXPRESSIONS, cuts_words_at_blanks, last_border

from .conftest import assistant, tokenizer, user

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(expression, behavior="isolated"):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), behavior), BYTES])


WORDS = {
    "gpt2": GPT2,
    "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    **{f"expression {number}": split(text) for number, text in enumerate(sorted(EXPRESSIONS))},
}
OTHER_WORDS = {
    "a blank before each text": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "no words": BYTES,
    "another expression": split(r"\S+\s\S+|\S+|\s+"),
    "another use of the expression": split(min(EXPRESSIONS), "merged_with_next"),
    "another kind": pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), GPT2]),
}
REACHING = {
    "a token with a blank": AddedToken("do you"),
    "a token that begins with a blank": AddedToken(" you"),
    "a token that takes in blanks": AddedToken("the", rstrip=True),
    "a token that is a whole word": AddedToken("you", single_word=True),
    "a whole word with a blank": AddedToken(" you", single_word=True),
}
PIECES = [
    *(
        "a",
        "you",
        "Zoë",
        "the",
        "pen",
        "I'LL",
        "'s",
        "ſ",
        "12",
        "½",
        "中",
        "é",
        "e\u0301",
        "\u0301",
        "\u200b",
        "😀",
        "。",
    ),
    *(
        " ",
        " ",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "\u00a0",
        "-",
        ".",
        "?",
        "'",
        "<|im_end|>",
        " you",
        "x y",
    ),
]


def changed(name, *added, words=None, normalizer=None):
    tok = copy.deepcopy(tokenizer(f"tokenizers/{name}"))
    if words is not None:
        tok.backend_tokenizer.pre_tokenizer = words
    if normalizer is not None:
        tok.backend_tokenizer.normalizer = normalizer
    tok.add_tokens(list(added))
    return tok


def random_texts(count, pieces=12):
    rng = random.Random(7)
    return ["".join(rng.choices(PIECES, k=rng.randint(1, pieces))) for _ in range(count)]


def random_rows(count):
    texts = iter(random_texts(3 * count))
    return [{"prompt": next(texts), "chosen": next(texts), "rejected": next(texts)} for _ in range(count)]


def all_of(tok, rows, *, cut, **options):
    """Everything that the rows are encoded to, with and without cutting texts."""
    encoder = Encoder(tok, **options)
    encoder._cuts_words &= cut
    outcomes = in_batches(
        enumerate(rows), lambda row: encoder.answers_steps(row, "chosen", "rejected"), encoder
    )
    return [(o.value, None if o.bad is None else (str(o.bad), o.bad.kind), o.notes) for o in outcomes]


def letters_given(tok, rows, monkeypatch):
    counts = []
    with monkeypatch.context() as patch:
        patch.setattr(
            batches, "tokenize", lambda t, texts: counts.append(sum(map(len, texts))) or tokenize(t, texts)
        )
        all_of(tok, rows, cut=True)
    return sum(counts)


def test_the_last_border():
    assert last_border("How are you?") == 7
    assert last_border("How are you? ") == 7
    assert last_border("a b") == 1
    for text in ("", "word", " word", "word ", "a  b", "1 a", "a 1", "é a", "a é", "a\nb", "a\u00a0b", ". a"):
        assert last_border(text) == 0


@pytest.mark.parametrize("words", WORDS)
def test_known_words(words):
    assert cuts_words_at_blanks(changed("minimind", words=WORDS[words]))


def test_real_tokenizers(chat):
    assert cuts_words_at_blanks(chat)


@pytest.mark.parametrize("words", OTHER_WORDS)
def test_other_words(words):
    assert not cuts_words_at_blanks(changed("minimind", words=OTHER_WORDS[words]))


@pytest.mark.parametrize("why", REACHING)
def test_added_tokens_that_reach_over_a_border(why):
    assert not cuts_words_at_blanks(changed("minimind", REACHING[why]))


def test_other_added_tokens(qwen2):
    assert cuts_words_at_blanks(changed("qwen2", AddedToken("you", lstrip=True), AddedToken("pen")))


def test_other_tokenizers(qwen2, stories):
    class Own(PreTrainedTokenizerFast):
        pass

    lower = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    dropping = changed("qwen2")
    dropping.backend_tokenizer.model.dropout = 0.1
    own = Own(tokenizer_object=qwen2.backend_tokenizer)
    for tok in (stories, ByT5Tokenizer(), own, dropping, changed("qwen2", normalizer=lower)):
        assert not cuts_words_at_blanks(tok)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("name", ["qwen2", "minimind"])
def test_the_parts_have_the_tokens_of_the_whole(name, words):
    tok = changed(
        name, AddedToken("you", lstrip=True), AddedToken("pen", normalized=True), words=WORDS[words]
    )
    beginnings, ends = random_texts(1000), random_texts(1000)[::-1]
    cuts = [last_border(text) for text in beginnings]
    wholes = [a + b for a, b in zip(beginnings, ends, strict=True)]
    rests = [text[cut:] for cut, text in zip(cuts, wholes, strict=True)]
    compared = 0
    for cut, first, rest, whole in zip(
        cuts, *(tokenize(tok, texts) for texts in (beginnings, rests, wholes)), strict=True
    ):
        if cut:
            joined = first.joined(cut, rest)
            assert joined.ids == whole.ids
            assert joined.offsets == whole.offsets
            assert [joined.start(i) for i in range(len(joined.ids))] == [start for start, _ in whole.offsets]
            compared += 1
    assert compared > 150


@pytest.mark.parametrize("options", [{}, {"max_length": 12, "truncation": True, "vocab_size": 2000}])
def test_rows_are_encoded_alike(any_tokenizer, options):
    rows = random_rows(400)
    assert all_of(any_tokenizer, rows, cut=True, **options) == all_of(
        any_tokenizer, rows, cut=False, **options
    )


def test_conversations_are_encoded_alike(chat):
    rows = [
        {"prompt": [user(row["prompt"])], **{name: [assistant(row[name])] for name in ("chosen", "rejected")}}
        for row in random_rows(150)
    ]
    assert all_of(chat, rows, cut=True) == all_of(chat, rows, cut=False)


@pytest.mark.parametrize(
    "token", [AddedToken("do you"), AddedToken(" you", single_word=True), AddedToken("do", rstrip=True)]
)
def test_the_conditions_are_needed(token):
    """Without them, a text would have other tokens."""
    tok, text = changed("minimind", token), "What do you"
    cut = last_border(text)
    whole, first, rest = tokenize(tok, [text, text[:cut], text[cut:]])
    assert whole.ids != first.ids + rest.ids
    assert Encoder(tok).prompt({"prompt": text}) == whole.ids


def test_a_prompt_is_encoded_once(qwen2, monkeypatch):
    row = {"prompt": "word " * 100 + "and a word:", "chosen": " yes", "rejected": " never"}
    rest = len(" word:")
    whole = len(row["prompt"])
    assert letters_given(qwen2, [row], monkeypatch) == whole + 2 * rest + len(" yes") + len(" never")


def test_a_prompt_in_a_template_is_encoded_once(chat, monkeypatch):
    row = {
        "prompt": [user("word " * 1000 + "and a word")],
        "chosen": [assistant("Yes.")],
        "rejected": [assistant("Never.")],
    }
    assert 5000 < letters_given(chat, [row], monkeypatch) < 5600


def test_a_prompt_is_encoded_with_each_answer_where_words_are_not_known(stories, monkeypatch):
    row = {"prompt": "word " * 100, "chosen": "yes", "rejected": "never"}
    assert letters_given(stories, [row], monkeypatch) == 3 * 500 + len("yes") + len("never")


def test_a_bad_row_is_refused_with_the_same_words(qwen2):
    row = {"prompt": "word " * 100 + "and a word:", "chosen": " yes", "rejected": " never" * 9}
    with pytest.raises(BadRow, match="the rejected answer with its prompt has 114 tokens"):
        Encoder(qwen2, max_length=110).pair(row)
