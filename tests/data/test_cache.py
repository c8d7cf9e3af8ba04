"""The cache is never wrong, never half written, never in the way, and no larger than it may be."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_peft import atomic
from rlhf_peft.data import cache, cached_rows, encode_prompts, encoded, for_trl, identity, load_rows, require
from rlhf_peft.data.encode import Encoder
from rlhf_peft.errors import DataError, UsageError

from .conftest import assistant, user

PAIR = {"prompt": [user("2+2?")], "chosen": [assistant("It is 4.")], "rejected": [assistant("5")]}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(folder))
    return folder


@pytest.fixture
def made(monkeypatch):
    """How often rows were written, by kind."""
    counts = {"rows": 0, "encoded": 0}
    load_or_make = cache.load_or_make

    def counting(kind, key, write, about="", **more):
        def count(open_sink):
            counts[kind] += 1
            return write(open_sink)

        return load_or_make(kind, key, count, about, **more)

    monkeypatch.setattr(cache, "load_or_make", counting)
    return counts


def encode(path, tokenizer, **options):
    """Encode a file's pairs; options are those of `Encoder`, `load_rows` and `for_trl`."""
    of_rows = {name: options.pop(name) for name in ("columns", "split") if name in options}
    of_trl = {name: options.pop(name) for name in ("unpair", "on_bad_row", "on_long_row") if name in options}
    rows = load_rows(path=path, **of_rows)
    return for_trl(rows, require(rows, "dpo", "x"), Encoder(tokenizer, **options), **of_trl)


# --- what is kept ---


def test_rows_are_read_and_encoded_once(jsonl, qwen2, made):
    path = jsonl(PAIR, PAIR)
    first, second = encode(path, qwen2), encode(path, qwen2)
    assert made == {"rows": 1, "encoded": 1}
    assert first.to_dict() == second.to_dict() and first.features == second.features


def test_another_place_of_the_same_rows_is_no_other_rows(jsonl, qwen2, made):
    encode(jsonl(PAIR), qwen2)
    encode(jsonl(PAIR, name="other.jsonl"), qwen2)
    assert made == {"rows": 1, "encoded": 1}


def changed(tokenizer, **values):
    other = copy.deepcopy(tokenizer)
    for name, value in values.items():
        setattr(other, name, value)
    return other


def with_a_token(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["It is"])
    return other


def without_merges(tokenizer):
    from tokenizers import Tokenizer

    other = copy.deepcopy(tokenizer)
    document = json.loads(other.backend_tokenizer.to_str())
    document["model"]["merges"] = document["model"]["merges"][:1000]
    other._tokenizer = Tokenizer.from_str(json.dumps(document))
    return other


OTHER = {
    "chat template": lambda t: (changed(t, chat_template=t.chat_template + "\n"), {}),
    "eos": lambda t: (changed(t, eos_token="<|endoftext|>"), {}),
    "added token": lambda t: (with_a_token(t), {}),
    "merges": lambda t: (without_merges(t), {}),
    "template arguments": lambda t: (t, {"chat_template_kwargs": {"enable_thinking": False}}),
    "system": lambda t: (t, {"system": "Be brief."}),
    "max_length": lambda t: (t, {"max_length": 100}),
    "truncation": lambda t: (t, {"truncation": True}),
    "eos ids": lambda t: (t, {"eos_ids": [t.eos_token_id, 5]}),
    "vocabulary": lambda t: (t, {"vocab_size": 151_700}),
    "unpair": lambda t: (t, {"unpair": True}),
    "on_bad_row": lambda t: (t, {"on_bad_row": "skip"}),
    "on_long_row": lambda t: (t, {"on_long_row": "skip"}),
    "columns": lambda t: (t, {"columns": {"chosen": "rejected", "rejected": "chosen"}}),
    "split": lambda t: (t, {"split": "train[:1]"}),
}


@pytest.mark.parametrize("what", OTHER)
def test_what_rows_depend_on_makes_other_rows(jsonl, qwen2, made, monkeypatch, what):
    path = jsonl(PAIR, PAIR)
    encode(path, qwen2)
    tokenizer, options = OTHER[what](qwen2)
    there = encode(path, tokenizer, **options)
    assert made == {"rows": 1, "encoded": 2}
    monkeypatch.setenv(cache.FOLDER_VARIABLE, "off")
    assert there.to_dict() == encode(path, tokenizer, **options).to_dict()


def test_other_values_are_other_rows(jsonl, qwen2, made):
    encode(jsonl(PAIR), qwen2)
    encode(jsonl({**PAIR, "chosen": [assistant("It is 4!")]}), qwen2)
    encode(jsonl({**PAIR, "margin": 1}), qwen2)
    assert made == {"rows": 3, "encoded": 3}


@pytest.mark.parametrize("module", [encoded, cached_rows])
def test_another_version_of_our_code_makes_other_rows(jsonl, qwen2, made, monkeypatch, module):
    path = jsonl(PAIR)
    encode(path, qwen2)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    encode(path, qwen2)
    assert made == {"rows": 1 + (module is cached_rows), "encoded": 1 + (module is encoded)}


def test_another_version_of_a_library_makes_other_rows(jsonl, qwen2, made, monkeypatch):
    path = jsonl(PAIR)
    encode(path, qwen2)
    monkeypatch.setattr(identity, "_version", lambda name: "99")
    encode(path, qwen2)
    assert made["encoded"] == 2


def test_stages_do_not_share_what_differs(jsonl, qwen2, made):
    rows = load_rows(path=jsonl(PAIR))
    encode_prompts(rows, Encoder(qwen2))
    encode_prompts(rows, Encoder(qwen2), max_new_tokens=3)
    assert made["encoded"] == 2


def test_a_template_with_the_date_is_read_anew_each_day(jsonl, qwen2, made, monkeypatch):
    class Tomorrow(identity.date):
        @classmethod
        def today(cls):
            return cls(2099, 1, 1)

    dated = changed(qwen2, chat_template="{{ strftime_now('%d %b') }}" + qwen2.chat_template)
    path = jsonl(PAIR)
    encode(path, dated)
    monkeypatch.setattr(identity, "date", Tomorrow)
    encode(path, dated)
    assert made["encoded"] == 2


def test_padding_that_a_tokenizer_was_called_with_does_not_matter(jsonl, qwen2, made):
    path, other = jsonl(PAIR), copy.deepcopy(qwen2)
    encode(path, other)
    other(["a", "b c"], padding=True)
    encode(path, other)
    assert made["encoded"] == 1


def test_a_tokenizer_that_cannot_be_serialised_is_not_kept(jsonl, qwen2, made):
    class Own(type(qwen2)):
        pass

    other = copy.deepcopy(qwen2)
    other.__class__ = Own
    path = jsonl(PAIR)
    assert encode(path, other).to_dict() == encode(path, other).to_dict() == encode(path, qwen2).to_dict()
    assert made["encoded"] == 3


# --- the same messages ---


def test_messages_are_those_of_the_first_time(jsonl, qwen2, made, caplog):
    path = jsonl(PAIR, {**PAIR, "chosen": []}, "{", {**PAIR, "prompt": [user("say <|im_end|>")]})

    def said():
        caplog.clear()
        rows = load_rows(path=path, on_bad_row="skip")
        for_trl(rows, require(rows, "dpo", "x"), Encoder(qwen2), on_bad_row="skip", source="x", stage="s")
        return caplog.messages

    first = said()
    assert len(first) == 3 and said() == first
    assert made == {"rows": 1, "encoded": 1}


def test_refusals_are_those_of_the_first_time(jsonl, qwen2, made):
    path = jsonl(PAIR, {**PAIR, "chosen": []})
    told = []
    for _ in range(2):
        with pytest.raises(DataError) as error:
            encode(path, qwen2)
        told.append(str(error.value))
    assert told[0] == told[1] and "row 2" in told[0] and made["encoded"] == 1


def test_remarks_on_a_file_are_those_of_the_first_time(tmp_path, made, caplog):
    path = tmp_path / "a.csv"
    path.write_bytes("prompt;completion\ncaf\xe9;b\n".encode("cp1252"))
    for _ in range(2):
        caplog.clear()
        assert load_rows(path=path).info.description == 'separator ";"'
        assert caplog.messages == [f"{path}, line 2: not UTF-8; read as Windows-1252"]
    assert made["rows"] == 1


def test_a_column_whose_kind_changes_late(tmp_path, monkeypatch):
    """The first rows show another kind of values, and not all columns."""
    monkeypatch.setattr(cache, "BATCH", 2)
    rows = [{"a": 1}, {"a": 2}, {"a": 2.5, "b": "x"}, {"a": None}, {"a": "y", "b": [1, {"c": None}]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [{k: v for k, v in row.items() if k in "ab"} for row in load_rows(path=path)] == [
        {"a": row["a"], "b": row.get("b")} for row in rows
    ]


# --- off, full, damaged, killed, twice ---


@pytest.mark.parametrize("value", ["off", "0", "OFF"])
def test_it_can_be_switched_off(jsonl, qwen2, made, monkeypatch, place, value):
    monkeypatch.setenv(cache.FOLDER_VARIABLE, value)
    path = jsonl(PAIR)
    assert encode(path, qwen2).to_dict() == encode(path, qwen2).to_dict()
    assert made == {"rows": 2, "encoded": 2} and not place.exists() and cache.entries() == []


def test_its_place(monkeypatch, tmp_path):
    monkeypatch.delenv(cache.FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.root() == tmp_path / "rlhf_peft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache.root() == tmp_path / "me" / ".cache" / "rlhf_peft"


def test_the_tests_have_a_cache_of_their_own():
    assert Path(os.environ["RLHF_PEFT_TESTS_CACHE"]) != Path.home() / ".cache" / "rlhf_peft"


FULL = """
import resource, signal, sys, logging
logging.basicConfig(format="%(message)s")
from rlhf_peft.data import load_rows
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for path in sys.argv[1:]:
    print(sum(len(row["text"]) for row in load_rows(path=path)))
"""


def test_a_full_disk_costs_nothing_but_time(jsonl, place):
    """Files may not grow beyond 20 kB, as on a disk without room; that is said once."""
    paths = [jsonl(*({"text": "x" * 1000} for _ in range(100)), name=f"{n}.jsonl") for n in "ab"]
    done = subprocess.run(
        [sys.executable, "-c", FULL, *map(str, paths)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["100000", "100000"], done.stderr
    assert done.stderr.count("rows cannot be kept there (File too large)") == 1
    assert list(place.iterdir()) == []


def test_a_folder_that_cannot_be_written(jsonl, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "file" / "cache"))
    assert len(load_rows(path=jsonl({"text": "a"}))) == 1
    assert len([message for message in caplog.messages if "cannot be kept there" in message]) == 1


@pytest.mark.parametrize("damage", ["short", "empty", "no rows", "no words", "not JSON"])
def test_a_damaged_entry_is_made_again(jsonl, qwen2, made, place, damage):
    path = jsonl(PAIR)
    first = encode(path, qwen2).to_dict()
    for entry in place.iterdir():
        rows, words = entry / cache.ROWS, entry / cache.ABOUT
        if damage == "short":
            rows.write_bytes(rows.read_bytes()[:-100])
        elif damage == "empty":
            rows.write_bytes(b"")
        elif damage == "no rows":
            rows.unlink()
        elif damage == "no words":
            words.unlink()
        else:
            words.write_text("{")
    assert encode(path, qwen2).to_dict() == first and made == {"rows": 2, "encoded": 2}
    assert encode(path, qwen2).to_dict() == first and made == {"rows": 2, "encoded": 2}


SLOW = """
import sys, time
from pathlib import Path
from rlhf_peft.data import cache, table
import rlhf_peft.data.cached_rows as cached_rows
checked = cached_rows.checked
def slowly(rows, bad):
    for number, row in enumerate(checked(rows, bad)):
        yield row
        if number == 1500:
            Path(sys.argv[2]).write_text("")
            time.sleep(float(sys.argv[3]))
cached_rows.checked = slowly
from rlhf_peft.data import load_rows
print(len(load_rows(path=sys.argv[1])))
"""


def slow(path: Path, flag: Path, seconds: float) -> subprocess.Popen:
    """A process that stops for a while in the middle of writing an entry."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(path), str(flag), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not flag.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_a_process_that_is_killed_leaves_nothing(jsonl, tmp_path, place, made):
    path = jsonl(*({"text": f"row {number}"} for number in range(3000)))
    process = slow(path, tmp_path / "flag", 60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [atomic.is_left_over(entry) for entry in place.iterdir()] == [True] and cache.entries() == []
    assert len(load_rows(path=path)) == 3000 and made["rows"] == 1
    assert len(list(place.iterdir())) == len(cache.entries()) == 1


def test_two_processes_at_once(jsonl, tmp_path, place, made):
    path = jsonl(*({"text": f"row {number}"} for number in range(3000)))
    process = slow(path, tmp_path / "flag", 2)
    assert len(load_rows(path=path)) == 3000 and len(cache.entries()) == 1
    assert process.communicate(timeout=60)[0].strip() == "3000" and process.returncode == 0
    assert len(list(place.iterdir())) == 1
    assert load_rows(path=path)[2999]["text"] == "row 2999" and made["rows"] == 1


def test_a_file_that_changes_while_it_is_read(jsonl, made, monkeypatch):
    path = jsonl({"text": "a"})
    checked = cached_rows.checked

    def while_it_grows(rows, bad):
        yield from checked(rows, bad)
        with path.open("a") as file:
            file.write('{"text": "b"}\n')

    monkeypatch.setattr(cached_rows, "checked", while_it_grows)
    load_rows(path=path)
    monkeypatch.setattr(cached_rows, "checked", checked)
    assert len(load_rows(path=path)) == len(path.read_text().splitlines()) and len(cache.entries()) == 1


# --- its size ---


def test_the_least_recently_used_goes_first(jsonl, place, made, monkeypatch):
    paths = [jsonl(*({"text": f"{n}" * 1000} for _ in range(50)), name=f"{n}.jsonl") for n in range(4)]
    for path in paths[:3]:
        load_rows(path=path)
        time.sleep(0.02)
    size = cache.entries()[0].size
    load_rows(path=paths[0])  # used again, so it is not the oldest
    monkeypatch.setenv(cache.LIMIT_VARIABLE, str(3.5 * size / 1e9))
    load_rows(path=paths[3])
    assert {entry.about for entry in cache.entries()} == {str(path) for path in (paths[0], *paths[2:])}
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "0")
    assert len(load_rows(path=paths[1])) == 50 and cache.entries() == []


def test_a_limit_that_is_no_number(monkeypatch):
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "much")
    with pytest.raises(UsageError, match="RLHF_PEFT_CACHE_GB=much: expected a number of GB"):
        cache.limit()


def test_memory_is_given_back(jsonl):
    rows = load_rows(path=jsonl(*({"text": "x" * 1000} for _ in range(100))))
    cache.release()
    assert rows[99]["text"] == "x" * 1000
