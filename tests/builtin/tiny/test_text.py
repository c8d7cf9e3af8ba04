"""The generated data is reproducible and well split, and the judge ranks as a reader would."""

import hashlib
import json
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_peft.builtin.tiny import text
from rlhf_peft.builtin.tiny.grammar import QUESTIONS, answer, question
from rlhf_peft.builtin.tiny.judge import KIND_WORDS, RUDE_WORDS, remarks, understand
from rlhf_peft.builtin.tiny.text import gold_score
from rlhf_peft.builtin.tiny.world import ASPECTS, subjects

MAKERS = {
    "prompts": text.prompts,
    "demonstrations": text.demonstrations,
    "preferences": text.preferences,
    "pretraining_texts": text.pretraining_texts,
}


def asked(rows):
    return {row["prompt"][0]["content"] for row in rows}


def digest(rows):
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_same_seed_same_rows_and_other_seed_other_rows(make):
    assert make(50, 3) == make(50, 3)
    assert make(50, 3) != make(50, 4)
    assert make(20, 3) == make(50, 3)[:20]


def test_rows_are_the_same_on_every_machine():
    assert {name: digest(make(200, 0)) for name, make in MAKERS.items()} == {
        "prompts": "8b5f520fdad56ae0",
        "demonstrations": "aa8a1daae0c1e91d",
        "preferences": "ab5ee23d2247914d",
        "pretraining_texts": "b5bccd12748c8e7d",
    }


def test_rows_have_the_conversational_form():
    (row,) = text.preferences(1, 0)
    assert [message["role"] for message in row["prompt"]] == ["user"]
    assert [row[key][0]["role"] for key in ("chosen", "rejected")] == ["assistant", "assistant"]
    (row,) = text.demonstrations(1, 0)
    assert set(row) == {"prompt", "completion"}
    (row,) = text.prompts(1, 0)
    assert set(row) == {"prompt"}


def test_train_and_test_questions_are_disjoint_and_cover_the_world():
    train, test = asked(text.prompts(5000, 0)), asked(text.prompts(5000, 0, split="test"))
    assert not train & test
    assert len(train | test) == len(subjects()) * sum(map(len, QUESTIONS.values()))
    for split in (train, test):
        assert {understand(prompt)[1] for prompt in split} == set(subjects())
    pretraining = json.dumps(text.pretraining_texts(5000, 0))
    assert not [prompt for prompt in test if f'"{prompt}"' in pretraining]
    for make in (text.demonstrations, text.preferences):
        assert asked(make(500, 1)) <= train
        assert asked(make(500, 1, split="test")) <= test


def test_no_prompt_comes_twice_before_all_have_come():
    rows = [row["prompt"][0]["content"] for row in text.prompts(200, 1, split="test")]
    assert len(set(rows[:190])) == 190


def test_unknown_split_and_impossible_noise_are_refused():
    with pytest.raises(ValueError, match="split"):
        text.prompts(1, 0, split="validation")
    with pytest.raises(ValueError, match="noise"):
        text.preferences(1, 0, noise=10)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_preferences_are_flipped_as_often_as_asked(noise):
    rows = text.preferences(2000, 0, noise=noise)
    assert all(row["chosen"] != row["rejected"] for row in rows)
    flips = sum(
        gold_score(row["prompt"], row["chosen"][0]["content"])
        < gold_score(row["prompt"], row["rejected"][0]["content"])
        for row in rows
    )
    assert abs(flips / len(rows) - noise) < 0.025


def test_the_table_of_the_world_is_whole():
    phrases = [phrase for subject in subjects() for aspect in ASPECTS for phrase in subject.details[aspect]]
    assert len(phrases) == len(set(phrases)) == 12 * len(subjects())
    words = {word for phrase in phrases for word in phrase.split()}
    assert not words & (KIND_WORDS | RUDE_WORDS), "a detail must not count as a tone"
    assert all(
        subject.noun not in phrase.split()
        for subject in subjects()
        for phrase in sum(subject.details.values(), ())
    )


@pytest.mark.parametrize("kind", QUESTIONS)
def test_every_question_is_understood(kind):
    for template in range(len(QUESTIONS[kind])):
        for subject in subjects():
            assert understand(question(kind, template, subject)) == (kind, subject)


def test_the_last_user_turn_is_the_question_in_any_form():
    rendered = (
        "<|begin|><|user|>Tell me about a cat.<|end|><|assistant|>Well.<|end|><|user|>Describe a dog.<|end|>"
    )
    assert understand(rendered + "<|assistant|>")[1].noun == "dog"
    messages = [
        {"role": "user", "content": "Describe a fox."},
        {"role": "assistant", "content": "Describe a dog."},
    ]
    assert understand(messages)[1].noun == "fox"
    assert understand("How do I peel a stick?") == ("", None)


CAT = "Tell me about a cat."
LAMP = "What can I do with a lamp?"
SEA = "Write a line about the sea."

RANKED = {
    "good, middling, bad": (
        CAT,
        "I am so glad you asked. A lovely cat has soft paws and naps in a patch of light.",
        "A cat has a warm purr.",
        "A cat is a thing.",
        "A cat is boring. Go ask somebody else.",
    ),
    "something to do": (
        LAMP,
        "With a bright lamp you could read late beside it, or put it by the bed. Have fun with it.",
        "With a lamp you can read late beside it.",
        "A lamp has a brass foot.",
        "I do not care. A lamp is useless.",
    ),
    "an image": (
        SEA,
        "Oh, I love this one. Oh sea, you are the oldest song.",
        "The sea is the oldest song.",
        "Some people know the sea.",
        "What a dreary question. The sea is stale.",
    ),
    "true, vague, false": (CAT, "A cat has soft paws.", "I have heard of a cat.", "A cat has iron wheels."),
    "off topic": (CAT, "A cat has soft paws.", "A dog has a wet nose."),
    "broken off": (CAT, "A cat has soft paws and a warm purr.", "A cat has soft paws and a warm"),
    "one good word again": (
        CAT,
        "A lovely cat has soft paws.",
        "A lovely lovely lovely cat has soft paws.",
        "Lovely lovely lovely lovely lovely lovely lovely lovely.",
    ),
    "a list of good words": (
        CAT,
        "A gentle cat has soft paws. I hope that helps.",
        "Cat lovely gentle cosy sweet merry love joy hope fun smile soft paws.",
    ),
    "the same sentence again": (
        CAT,
        "A cat has soft paws. It has a warm purr.",
        "A cat has soft paws. A cat has soft paws.",
        "A cat has soft paws. A cat has soft paws. A cat has soft paws. A cat has soft paws.",
    ),
    "on and on": (
        CAT,
        "A cat has soft paws. It naps in a patch of light. You will love it.",
        "A cat has soft paws and it has a warm purr and it has long whiskers and it naps in a patch of light "
        "and it hunts at dusk and it lands on its feet and it is the queen of the sofa and it is",
    ),
    "nothing": (CAT, "A cat is a thing.", "A cat", ""),
}


@pytest.mark.parametrize("case", RANKED)
def test_judge_ranks_as_a_reader_would(case):
    prompt, *answers = RANKED[case]
    scores = [gold_score(prompt, answer) for answer in answers]
    assert all(better > worse + 0.05 for better, worse in pairwise(scores)), scores


def test_judge_reads_every_form_of_prompt_and_ignores_special_tokens():
    messages = [{"role": "user", "content": CAT}]
    rendered = f"<|begin|><|user|>{CAT}<|end|><|assistant|>"
    good = "A lovely cat has soft paws."
    assert (
        gold_score(CAT, good) == gold_score(messages, good) == gold_score(rendered, f"{good}<|end|><|pad|>")
    )


def test_nothing_said_is_the_worst():
    assert gold_score(CAT, "") == gold_score(CAT, " \n<|end|>") == gold_score(CAT, "...") == -1.0


@given(st.text(max_size=60), st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_judge_is_bounded_on_any_text(prompt, completion):
    assert -1.0 <= gold_score(prompt, completion) <= 1.0


def test_judge_is_graded_and_care_pays():
    rng = Random(0)
    means, levels = [], set()
    for care in (0.0, 0.5, 1.0):
        scores = []
        for number in range(600):
            subject, kind = subjects()[number % len(subjects())], list(QUESTIONS)[number % 3]
            scores.append(gold_score(question(kind, number % 8, subject), answer(rng, subject, kind, care)))
        means.append(sum(scores) / len(scores))
        levels |= {round(score, 6) for score in scores}
    assert means[0] + 0.2 < means[1] < means[2] - 0.2
    assert len(levels) > 100


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A lovely cat has soft paws.", {"apt", "true", "fitting", "kind", "whole"}),
        ("A cat is the queen of the sofa. It has soft paws", {"apt", "rich", "fitting", "plain", "broken"}),
        ("You can brush its fur.", {"astray", "true", "beside", "plain", "whole"}),
        ("I hate it. A cat has iron wheels.", {"apt", "false", "rude", "whole"}),
        ("A cat is a thing. A cat is a thing.", {"apt", "empty", "plain", "repeated"}),
    ],
)
def test_remarks_name_what_a_reader_notices(answer, expected):
    assert set(remarks(CAT, answer)) == expected
