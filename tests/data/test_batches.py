"""A row is encoded to the same ids, refused with the same words, and noted alike, alone and in a batch."""

from __future__ import annotations

import copy
import functools
import gc
from pathlib import Path

import pytest
import trl

from rlhf_peft.data import batches
from rlhf_peft.data.batches import in_batches
from rlhf_peft.data.encode import Encoder
from rlhf_peft.data.rows import BadRow
from rlhf_peft.data.tokens import tokenize
from rlhf_peft.engine.ends import end_ids
from rlhf_peft.errors import DataError

from .conftest import assistant, tokenizer, user

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": "1"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "adds one",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "a number"}}},
    },
}

PLAIN = [
    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    {"prompt": "The sky is ", "chosen": "blue", "rejected": "  green\n"},
    {"prompt": "", "chosen": "x", "rejected": "y"},
    {"prompt": "Sky:", "chosen": "\n1 <|im_end|> ", "rejected": "a<|im_end|>b<|im_end|>"},
    {"prompt": "é\u200b", "chosen": "e\u0301 ½ﬁ", "rejected": "😀\x07"},
    {"prompt": "long " * 100, "chosen": "a", "rejected": "b"},
    {"prompt": "a", "chosen": "b" * 300, "rejected": "c"},
]
CHATS = [
    {
        "prompt": [user(row["prompt"] or "?")],
        "chosen": [assistant(row["chosen"])],
        "rejected": [assistant("no")],
    }
    for row in PLAIN
] + [
    {
        "prompt": [{"role": "system", "content": "Be kind."}, user("hi"), assistant("hello"), user("more")],
        "chosen": [assistant("yes") | {"reasoning_content": "hm"}],
        "rejected": [assistant("<think>\nwell\n</think>\n\nno")],
    },
    {
        "prompt": [user("what is 1 and 1?")],
        "chosen": [assistant("") | {"tool_calls": [CALL]}],
        "rejected": [assistant("3")],
        "tools": [TOOL],
    },
    {
        "prompt": [user("say"), assistant("It is")],
        "chosen": [assistant(" so.")],
        "rejected": [assistant(" not.")],
    },
]
TALKS = [{"messages": [*row["prompt"], *row["chosen"], user("And?"), assistant("So.")]} for row in CHATS]
KINDS = {"prompt": CHATS, "answers": CHATS, "talk": TALKS, "turns": TALKS}
"""Rows for each kind of encoding."""
STEPS = {
    "prompt": lambda encoder, row: encoder.prompt_steps(row),
    "answers": lambda encoder, row: encoder.answers_steps(row, "chosen", "rejected"),
    "talk": lambda encoder, row: encoder.demonstration_steps(row),
    "turns": lambda encoder, row: encoder.demonstration_steps(row, assistant_only=True),
}
ALONE = {
    "prompt": lambda encoder, row: encoder.prompt(row),
    "answers": lambda encoder, row: encoder.answers(row, "chosen", "rejected"),
    "talk": lambda encoder, row: encoder.demonstration(row),
    "turns": lambda encoder, row: encoder.demonstration(row, assistant_only=True),
}


def one_by_one(encoder, rows, what):
    found = []
    for row in rows:
        try:
            value = ALONE[what](encoder, row)
        except BadRow as bad:
            value = (str(bad), bad.kind, bad.remedy)
        found.append((value, encoder.take_notes()))
    return found


def together(encoder, rows, what):
    outcomes = in_batches(enumerate(rows, start=1), lambda row: STEPS[what](encoder, row), encoder)
    found = []
    for number, outcome in enumerate(outcomes, start=1):
        assert outcome.number == number and outcome.row is rows[number - 1]
        bad = outcome.bad
        value = outcome.value if bad is None else (str(bad), bad.kind, bad.remedy)
        found.append((value, sorted(outcome.notes)))
    return found


def check(tok, rows, *kinds, **options):
    for what in kinds:
        alone, batch = (of(Encoder(tok, **options), rows, what) for of in (one_by_one, together))
        assert batch == alone


@functools.cache
def with_template(path):
    """A tokenizer with a template of TRL, its end ids, and what each row alone becomes, by the kind of encoding."""
    tok = copy.copy(tokenizer("tokenizers/minimind"))
    tok.chat_template = path.read_text(encoding="utf-8")
    ends = end_ids(tok)
    alone = {what: one_by_one(Encoder(tok, eos_ids=ends), rows, what) for what, rows in KINDS.items()}
    return tok, ends, alone


@pytest.fixture(autouse=True, params=[3, 256])
def size(request, monkeypatch):
    monkeypatch.setattr(batches, "ROWS", request.param)


def test_plain_rows(any_tokenizer):
    check(any_tokenizer, PLAIN, "prompt", "answers", max_length=80)
    check(any_tokenizer, PLAIN, "answers", max_length=80, truncation=True, vocab_size=2000)


def test_conversations(chat):
    check(chat, CHATS, "prompt", "answers", max_length=120)
    check(chat, TALKS, "talk", "turns", max_length=300, truncation=True, system="Be brief.")


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_templates_of_trl(template):
    tok, ends, alone = with_template(template)
    for what, rows in KINDS.items():
        assert together(Encoder(tok, eos_ids=ends), rows, what) == alone[what]


def test_there_are_templates():
    assert len(TEMPLATES) >= 65


def test_a_tokenizer_in_python():
    """It has no threads, and knows no offsets."""
    from transformers import ByT5Tokenizer

    check(ByT5Tokenizer(), PLAIN, "prompt", "answers", max_length=200)


def test_real_rows(ultrafeedback, any_tokenizer):
    from rlhf_peft.data import load_rows

    rows = [
        row for row in load_rows(path=ultrafeedback, split="train[:40]") if row["chosen"] and row["rejected"]
    ]
    check(any_tokenizer, rows, "prompt", "answers")


def test_many_texts_have_the_tokens_of_each(any_tokenizer):
    texts = [text for row in PLAIN for text in row.values()]
    for text, tokens in zip(texts, tokenize(any_tokenizer, texts), strict=True):
        alone = any_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert tokens.ids == alone["input_ids"]
        assert [tokens.start(place) for place in range(len(tokens.ids))] == [
            first for first, _ in alone["offset_mapping"]
        ]
        assert tokens.offsets == alone["offset_mapping"]


def test_one_call_of_the_tokenizer_for_many_rows(qwen2, monkeypatch):
    calls = []
    monkeypatch.setattr(
        batches, "tokenize", lambda tok, texts: calls.append(len(texts)) or tokenize(tok, texts)
    )
    monkeypatch.setattr(batches, "ROWS", 100)
    row = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    assert (
        len(
            list(
                in_batches(
                    enumerate([row] * 200), lambda r: STEPS["answers"](Encoder(qwen2), r), Encoder(qwen2)
                )
            )
        )
        == 200
    )
    assert [count for count in calls if count] == [300, 300]


def test_a_bad_row_keeps_nothing_of_its_batch(qwen2):
    """A traceback holds the frames, and they hold the tokens of all rows: hundreds of MB with a few bad rows."""
    encoder = Encoder(qwen2, max_length=20)
    outcomes = in_batches(enumerate(PLAIN), lambda row: STEPS["answers"](encoder, row), encoder)
    bad = [outcome.bad for outcome in outcomes if outcome.bad is not None]
    assert bad and all(b.__traceback__ is b.__context__ is b.__cause__ is None for b in bad)


def test_what_is_no_bad_row_ends_it_all(stories):
    """A tokenizer without a chat template cannot encode any conversation."""
    encoder = Encoder(stories)
    with pytest.raises(DataError, match="has no chat template"):
        list(in_batches(enumerate(CHATS), lambda row: STEPS["answers"](encoder, row), encoder))


@pytest.mark.parametrize("ahead", [1, 4])
def test_rows_that_need_more_rounds_than_later_ones_keep_their_place(qwen2, monkeypatch, ahead):
    monkeypatch.setattr(batches, "ROWS", 2)
    monkeypatch.setattr(batches, "AHEAD", ahead)

    def steps(number):
        """The first rows ask for the tokens of one text after the other, the last rows for none."""
        sizes = []
        for _ in range(max(0, 6 - number)):
            (tokens,) = yield ["word " * (number + 1)]
            sizes.append(len(tokens.ids))
        if number == 3:
            raise BadRow("it is bad")
        return sizes

    outcomes = list(in_batches(enumerate(range(13)), steps, Encoder(qwen2)))
    assert [outcome.number for outcome in outcomes] == list(range(13))
    assert [outcome.number for outcome in outcomes if outcome.bad] == [3]
    for number, outcome in enumerate(outcomes):
        if number != 3:
            assert outcome.value == [len(qwen2("word " * (number + 1))["input_ids"])] * max(0, 6 - number)


def test_the_garbage_collector_is_as_it_was_afterwards(qwen2, monkeypatch):
    monkeypatch.setattr(batches, "ROWS", 1)
    encoder = Encoder(qwen2)
    steps = lambda row: STEPS["answers"](encoder, row)  # noqa: E731
    assert gc.isenabled() and list(in_batches(enumerate(PLAIN), steps, encoder)) and gc.isenabled()
    left_early = in_batches(enumerate(PLAIN), steps, encoder)
    next(left_early)
    left_early.close()
    assert gc.isenabled()
    gc.disable()
    try:
        assert list(in_batches(enumerate(PLAIN), steps, encoder)) and not gc.isenabled()
    finally:
        gc.enable()


def test_what_a_template_leaves_behind_does_not_pile_up(qwen2, monkeypatch):
    """Each text that a template writes leaves cycles of objects behind; 20,000 chats were a million objects."""
    monkeypatch.setattr(batches, "ROWS", 20)
    encoder = Encoder(qwen2)
    chat = {"prompt": [user("Hi")], "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}
    gc.collect()
    outcomes = in_batches(enumerate([chat] * 400), lambda row: STEPS["answers"](encoder, row), encoder)
    done = [next(outcomes) for _ in range(399)]
    left = gc.collect()
    assert left < 10 * len(done), left
