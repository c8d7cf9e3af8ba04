"""Judgements are on the disk at once, whoever writes, and come back as preferences."""

import multiprocessing
import os
import signal
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_peft.errors import DataError
from rlhf_peft.labelling.results import agreements, blind_tests, cohens_kappa, preferences
from rlhf_peft.labelling.store import Pair, Store


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "labels.db")
    made.add([Pair(f"p{i}", f"a{i}", f"b{i}", "policy", "reference", priority=i / 10) for i in range(6)])
    return made


def test_pairs_come_once_the_most_disputed_first(store):
    seen = []
    while (pair := store.next("ann")) is not None:
        seen.append(pair.prompt)
        store.judge(pair.id, "ann", "a")
    assert seen == ["p5", "p4", "p3", "p2", "p1", "p0"] and store.progress("ann") == (6, 6)
    # Another person begins with those that fewest have judged.
    store.undo("ann")
    assert store.next("bob").prompt == "p0"


def test_only_the_pairs_that_are_meant_are_shown_and_counted(store):
    among = store.numbers(
        [Pair("p1", "b1", "a1", "reference", "policy"), Pair("p4", "a4", "b4", "policy", "reference")]
    )
    assert sorted(among) == [2, 5] and store.numbers([Pair("p1", "other", "b1")]) == []
    store.judge(1, "ann", "a"), store.judge(5, "ann", "a")
    assert store.progress("ann", among) == (1, 2) and store.progress("ann") == (2, 6)
    assert store.next("ann", among).prompt == "p1"
    store.judge(2, "ann", "skip")
    assert (
        store.next("ann", among) is None
        and store.next("ann", []) is None
        and store.progress("ann", []) == (0, 0)
    )


def test_a_pair_is_added_once_whichever_answer_is_first(store):
    assert store.add([Pair("p0", "b0", "a0", "reference", "policy")]) == 0
    assert store.add([Pair("p0", "a0", "c0", "policy", "reference")]) == 1


def test_undo_takes_the_last_one_of_that_person(store):
    store.judge(1, "ann", "a"), store.judge(2, "bob", "b"), store.judge(3, "ann", "tie", "hm")
    assert store.undo("ann").pair == 3 and store.undo("ann").pair == 1 and store.undo("ann") is None
    assert [j.annotator for j in store.judgements()] == ["bob"]


def test_wrong_judgements_are_refused(store):
    with pytest.raises(ValueError, match="none of a, b, tie, skip"):
        store.judge(1, "ann", "left")
    with pytest.raises(ValueError, match="no pair 99"):
        store.judge(99, "ann", "a")


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x.db").write_text("no database, but text that is long enough to be read as one" * 20)
    with pytest.raises(DataError, match="not a file of judgements"):
        Store(tmp_path / "x.db")


def _judge(path, who, numbers):
    store = Store(path)
    for number in numbers:
        store.judge(number, who, "a")


def test_several_write_at_once_and_nothing_is_lost(tmp_path):
    path = tmp_path / "labels.db"
    store = Store(path)
    store.add([Pair(f"p{i}", "a", "b") for i in range(40)])
    context = multiprocessing.get_context("fork")
    people = [context.Process(target=_judge, args=(path, f"person {k}", range(1, 41))) for k in range(4)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert [p.exitcode for p in people] == [0] * 4 and len(store.judgements()) == 160


def test_what_was_judged_before_a_crash_is_there(tmp_path):
    path = tmp_path / "labels.db"
    Store(path).add([Pair(f"p{i}", "a", "b") for i in range(10)])
    child = os.fork()
    if child == 0:
        store = Store(path)
        for number in range(1, 6):
            store.judge(number, "ann", "b")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [j.pair for j in Store(path).judgements()] == [1, 2, 3, 4, 5]


def test_preferences_have_probabilities(store):
    for who, choice in (("ann", "a"), ("bob", "a"), ("cat", "b"), ("dan", "tie")):
        store.judge(1, who, choice)
    store.judge(2, "ann", "b"), store.judge(3, "ann", "tie"), store.judge(4, "ann", "skip")
    rows = preferences(store.pairs(), store.judgements())
    assert rows == [
        {
            "prompt": "p0",
            "chosen": "a0",
            "rejected": "b0",
            "chosen_prob": 0.625,
            "annotators": 4,
            "notes": [],
        },
        {"prompt": "p1", "chosen": "b1", "rejected": "a1", "chosen_prob": 1.0, "annotators": 1, "notes": []},
    ]


def test_conversations_stay_conversations(tmp_path):
    store = Store(tmp_path / "l.db")
    prompt = [{"role": "user", "content": "hi"}]
    store.add([Pair(prompt, "yo", "go away")])
    store.judge(1, "ann", "a")
    (row,) = preferences(store.pairs(), store.judgements())
    assert row["prompt"] == prompt and row["chosen"] == [{"role": "assistant", "content": "yo"}]


def test_kappa():
    # Cohen 1960's measure on a table whose value is worked out by hand: p_o 0.7, p_e 0.5.
    first = ["a"] * 25 + ["b"] * 25
    second = ["a"] * 20 + ["b"] * 5 + ["a"] * 10 + ["b"] * 15
    assert cohens_kappa(first, second) == pytest.approx(0.4)
    assert cohens_kappa(["a", "b"], ["a", "b"]) == 1.0 and cohens_kappa(["a", "b"], ["b", "a"]) == -1.0
    assert cohens_kappa(["a"], ["a"]) == 1.0


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("ab")), min_size=1, max_size=30))
def test_kappa_is_symmetric_and_at_most_one(said):
    first, second = zip(*said, strict=True)
    value = cohens_kappa(first, second)
    assert value == pytest.approx(cohens_kappa(second, first)) and -1.0 <= value <= 1.0 + 1e-9


def test_agreement_leaves_skipped_pairs_out(store):
    for number, (one, other) in enumerate([("a", "a"), ("b", "b"), ("a", "b"), ("skip", "a")], start=1):
        store.judge(number, "ann", one), store.judge(number, "bob", other)
    (found,) = agreements(store.judgements())
    assert found.people == ("ann", "bob") and found.pairs == 3 and found.agreed == pytest.approx(2 / 3)


def test_who_won_a_blind_test(store):
    for number, choice in enumerate(["a", "a", "b", "tie", "skip"], start=1):
        store.judge(number, "ann", choice)
    (won,) = blind_tests(store.pairs(), store.judgements())
    assert (won.pairs, won.judgements) == (4, 4) and won.rate == pytest.approx(2.5 / 4)
    assert won.low <= won.rate <= won.high
    # Another person says the same of the same pairs: no more is known than before.
    for number, choice in enumerate(["a", "a", "b", "tie", "skip"], start=1):
        store.judge(number, "bob", choice)
    (again,) = blind_tests(store.pairs(), store.judgements())
    assert (again.pairs, again.judgements) == (4, 8) and (again.low, again.high) == (won.low, won.high)
    assert blind_tests(store.pairs(), []) == []


def test_the_next_policy_has_a_test_of_its_own(store):
    store.add([Pair("p0", "a0", "b0", "policy", "reference", source="run 2")])
    store.judge(1, "ann", "a"), store.judge(7, "ann", "b")
    found = {test.source: test.rate for test in blind_tests(store.pairs(), store.judgements())}
    assert found == {"": 1.0, "run 2": 0.0}


@pytest.mark.parametrize("way", [-365 * 86400.0, 365 * 86400.0])
def test_a_clock_that_is_set_anew_changes_no_order(store, monkeypatch, way):
    real, off = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + off[0])
    for number in (1, 2, 3):
        store.judge(number, "ann", "a")
        off[0] += way
    store.judge(1, "ann", "b")  # judged anew, so it is the last one
    assert [j.pair for j in store.judgements()] == [2, 3, 1]
    assert [store.undo("ann").pair for _ in range(3)] == [1, 3, 2]
