from __future__ import annotations

import pytest
from datasets import Dataset

import rlhf_peft.data as data
from rlhf_peft.data.rows import ROW, BadRow, BadRows, columns_of, numbered
from rlhf_peft.errors import DataError


def collected(bad, *numbers):
    for number in numbers:
        with bad.row(number):
            raise BadRow("it is odd", "odd")
    return bad


def test_no_bad_rows_no_word(caplog):
    BadRows("a.jsonl").finish(3)
    assert not caplog.records


def test_errors_name_the_first_row():
    with pytest.raises(DataError) as caught:
        collected(BadRows("a.jsonl"), 1234).finish(2000)
    assert str(caught.value) == (
        "a.jsonl, row 1,234: it is odd. Mend or remove it, or leave such rows out: dataset.on_bad_row=skip"
    )


def test_skipping_says_so_once(caplog):
    collected(BadRows("a.jsonl", "skip"), 3, 5).finish(10)
    assert [record.message for record in caplog.records] == [
        "a.jsonl: left out 2 of 10 rows: 2 odd (first: row 3)"
    ]
    assert caplog.records[0].name == "rlhf_peft"


def test_other_errors_pass_through():
    bad = BadRows("a.jsonl", "skip")
    with pytest.raises(KeyError), bad.row(1):
        raise KeyError
    assert not bad.rows


def test_numbers():
    rows = Dataset.from_dict({"text": ["a", "b"], ROW: [7, 9]})
    assert columns_of(rows) == ["text"]
    assert list(numbered(rows)) == [(7, {"text": "a"}), (9, {"text": "b"})]
    assert list(numbered(rows.remove_columns(ROW))) == [(1, {"text": "a"}), (2, {"text": "b"})]


def test_exports_are_sorted_and_there():
    assert sorted(data.__all__) == data.__all__
    assert all(hasattr(data, name) for name in data.__all__)
