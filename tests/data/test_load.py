from __future__ import annotations

import json

import datasets
import pytest

from rlhf_peft.data.load import hold_out, load_rows, looks_local
from rlhf_peft.data.rows import ROW, columns_of
from rlhf_peft.errors import DataError


@pytest.fixture
def ten(jsonl):
    return jsonl(
        *({"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(1, 11)), name="ten.jsonl"
    )


def test_splits_and_slices(ten):
    assert load_rows(path=ten, split="train[:20%]")["prompt"] == ["p1", "p2"]
    assert load_rows(path=ten, split="train[-2:]")[ROW] == [9, 10]
    assert load_rows(path=ten, split="train[:1]+train[-1:]")["prompt"] == ["p1", "p10"]


@pytest.mark.parametrize(
    "split, message",
    [
        ("test[:5]", r"ten\.jsonl: split 'test\[:5\]': there is no such split. Splits: train \(10 rows\)"),
        ("train[50:]", r"split 'train\[50:\]' is empty. Splits: train \(10 rows\)"),
        ("train[5:2]", r"is empty"),
        ("train[x:]", r"slices are written train\[:90%\]"),
        ("", r"slices are written"),
    ],
)
def test_wrong_splits(ten, split, message):
    with pytest.raises(DataError, match=message):
        load_rows(path=ten, split=split)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_empty_files(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=r"is empty. Splits: train \(0 rows\)|malformed"):
        load_rows(path=tmp_path / name)


def test_header_without_rows(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen\n")
    with pytest.raises(DataError, match="is empty"):
        load_rows(path=tmp_path / "a.csv")


def test_missing_file_says_where_it_looked(ten, tmp_path):
    with pytest.raises(DataError, match=rf"looked at {tmp_path}/tn\.jsonl.*Did you mean .*/ten\.jsonl\?"):
        load_rows(path=tmp_path / "tn.jsonl")
    with pytest.raises(DataError, match=r"the folder .*/nowhere does not exist either"):
        load_rows(path=tmp_path / "nowhere" / "ten.jsonl")


def test_what_looks_like_a_file():
    assert (
        looks_local("rows.jsonl") and looks_local("./rows") and looks_local("a/b/c") and looks_local("/rows")
    )
    assert not looks_local("trl-lib/Capybara") and not looks_local("imdb")


def test_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'trl-lib/Capybara' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        load_rows(path="trl-lib/Capybara")
    text = str(caught.value)
    assert "the Hugging Face hub cannot be reached" in text
    assert f"looked at {tmp_path}/trl-lib/Capybara" in text
    assert "path=./data/Capybara.jsonl" in text


def test_folder_of_files_with_splits(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (folder / "test.jsonl").write_text('{"text": "c"}\n')
    assert load_rows(path=folder, split="train[1:]")[ROW] == [2]
    assert load_rows(path=folder, split="test")["text"] == ["c"]
    both = load_rows(path=folder, split="train+test")
    assert both["text"] == ["a", "b", "c"] and both[ROW] == [1, 2, 3]
    with pytest.raises(DataError, match=r"Splits: train \(2 rows\), test \(1 rows\)"):
        load_rows(path=folder, split="validation")


def test_broken_file_in_a_folder_is_named(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"tex')
    with pytest.raises(DataError, match=r"train\.jsonl, row 2: malformed JSON") as caught:
        load_rows(path=folder)
    assert "on_bad_row" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read as a dataset"):
        load_rows(path=tmp_path / "empty")


def test_folders_that_save_to_disk_wrote(tmp_path):
    rows = datasets.Dataset.from_list([{"text": str(n)} for n in range(4)])
    datasets.disable_progress_bars()
    rows.with_format("numpy").save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=rows, test=rows.select([3])).save_to_disk(str(tmp_path / "two"))
    datasets.enable_progress_bars()
    assert load_rows(path=tmp_path / "one", split="train[1:2]")[0] == {"text": "1", ROW: 2}
    assert load_rows(path=tmp_path / "two", split="test")["text"] == ["3"]


def test_columns_are_renamed_and_others_give_way(jsonl):
    path = jsonl({"prompt": "old", "Question": "q", "Good": "g", "id": 7})
    rows = load_rows(path=path, columns={"prompt": "Question", "chosen": "Good", "text": "Question"})
    assert rows[0] == {"prompt": "q", "chosen": "g", "text": "q", "id": 7, ROW: 1}
    with pytest.raises(
        DataError, match=r"maps prompt to Qestion.*prompt, Question.*Did you mean \{prompt: Q"
    ):
        load_rows(path=path, columns={"prompt": "Qestion"})
    same = load_rows(path=path, columns={"prompt": "prompt"})
    assert sorted(columns_of(same)) == ["Good", "Question", "id", "prompt"]


def test_system_message_needs_conversations(jsonl):
    with pytest.raises(
        DataError, match="a system message needs conversations, but column prompt holds plain"
    ):
        load_rows(path=jsonl({"prompt": "hello"}), system="be kind")
    assert len(load_rows(path=jsonl({"question": "unmapped"}), system="be kind")) == 1


class Loader:
    def __init__(self, *rows):
        self._rows = rows

    def rows(self):
        return iter(self._rows)


def test_registered_dataset():
    loader = Loader({"text": "a"}, {"text": "b"}, {"text": "c"})
    rows = load_rows(name="mine", loader=loader, split="train[1:]", columns={"prompt": "text"})
    assert list(rows) == [{"prompt": "b", ROW: 2}, {"prompt": "c", ROW: 3}]
    with pytest.raises(DataError, match="mine, row 1: the dataset gave str"):
        load_rows(name="mine", loader=Loader("text"))
    with pytest.raises(DataError, match="mine: split 'train' is empty"):
        load_rows(name="mine", loader=Loader())


def test_a_source_is_needed():
    with pytest.raises(DataError, match="needs a `path`"):
        load_rows()


def test_progress_bars_are_put_back(ten):
    assert datasets.is_progress_bar_enabled()
    load_rows(path=ten)
    assert datasets.is_progress_bar_enabled()


@pytest.mark.parametrize("fraction, held", [(0.1, 1), (0.25, 2), (0.01, 1), (0.9, 9)])
def test_hold_out_parts_the_rows(ten, fraction, held):
    rows = load_rows(path=ten)
    train, out = hold_out(rows, fraction, seed=3)
    assert len(out) == held
    assert sorted([*train[ROW], *out[ROW]]) == list(range(1, 11))
    assert list(train[ROW]) == sorted(train[ROW])
    again = hold_out(rows, fraction, seed=3)
    assert json.dumps(list(again[1])) == json.dumps(list(out))


def test_hold_out_depends_on_the_seed_and_leaves_something(ten):
    rows = load_rows(path=ten)
    assert {tuple(hold_out(rows, 0.3, seed)[1][ROW]) for seed in range(10)} != {(1,)}
    assert len({tuple(hold_out(rows, 0.3, seed)[1][ROW]) for seed in range(10)}) > 5
    assert hold_out(rows, 0.0, seed=1) == (rows, None)
    with pytest.raises(DataError, match="leaves none to train on"):
        hold_out(rows, 0.99, seed=1)


def test_columns_may_be_joined(jsonl):
    rows = [
        {"instruction": "Translate.", "input": "dog", "output": "Hund"},
        {"instruction": "Hi", "input": "", "output": "x"},
    ]
    columns = {"prompt": ["instruction", "input"], "completion": "output"}
    made = load_rows(path=jsonl(*rows), columns=columns)
    assert made["prompt"] == ["Translate.\n\ndog", "Hi"] and columns_of(made) == ["prompt", "completion"]
    with pytest.raises(
        DataError, match=r"maps prompt to inputs, which is not among .* Did you mean \{prompt: input\}"
    ):
        load_rows(path=jsonl(*rows), columns={"prompt": ["instruction", "inputs"]})
    with pytest.raises(DataError, match="row 1: instruction, input are joined to prompt, and must hold text"):
        load_rows(path=jsonl({**rows[0], "input": 3}), columns=columns)
