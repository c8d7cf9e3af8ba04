from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlhf_peft.data.files import sniff_separator
from rlhf_peft.data.load import load_rows
from rlhf_peft.data.rows import columns_of
from rlhf_peft.errors import DataError


def load(path: Path, **options):
    return load_rows(path=path, **options)


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# --- jsonl and json ---


def test_jsonl_rows_carry_their_line(jsonl):
    rows = load(jsonl({"text": "one"}, "", {"text": "three"}))
    assert rows["text"] == ["one", "three"]
    assert rows["_row"] == [1, 3]


def test_malformed_line_is_named(jsonl):
    path = jsonl({"prompt": "a"}, '{"prompt": "b"', {"prompt": "c"})
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2: malformed JSON at column 15.*on_bad_row=skip"):
        load(path)


def test_malformed_lines_are_left_out_when_asked(jsonl, caplog):
    path = jsonl({"prompt": "a"}, "{", "[1]", {"prompt": "c"})
    rows = load(path, on_bad_row="skip")
    assert rows["prompt"] == ["a", "c"]
    assert rows["_row"] == [1, 4]
    assert [record.message for record in caplog.records] == [
        f"{path}: left out 2 of 4 rows: 1 not JSON, 1 no object (first: row 2)"
    ]


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, row 2: not UTF-8 \(byte 0xe9 .* Save the file as UTF-8"):
        load(path)


def test_utf16_is_named_as_such(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "x"}'.encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        load(path)


def test_byte_order_mark_is_no_part_of_the_data(tmp_path):
    assert load(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "x"}\r\n'))["text"] == ["x"]
    assert columns_of(load(write(tmp_path / "a.csv", b"\xef\xbb\xbftext,more\r\nx,y\r\n"))) == [
        "text",
        "more",
    ]


def test_missing_keys_become_none(jsonl):
    rows = load(jsonl({"prompt": "a"}, {"prompt": "b", "answer": "4"}))
    assert rows["answer"] == [None, "4"]


def test_values_of_several_types_are_bad_rows_where_stages_read(jsonl):
    path = jsonl({"prompt": "a"}, {"prompt": "b"}, {"prompt": [{"role": "user", "content": "c"}]})
    with pytest.raises(DataError, match=r"row 3: prompt: the type differs.*\(text and messages\)"):
        load(path)
    assert load(path, on_bad_row="skip")["prompt"] == ["a", "b"]


def test_other_columns_of_several_types_are_kept_as_text(jsonl, caplog):
    rows = load(jsonl({"prompt": "a", "answer": "x"}, {"prompt": "b", "answer": {"n": 1}}))
    assert rows["answer"] == ["x", '{"n": 1}']
    assert "column answer holds values of several types" in caplog.text


def test_json_array_and_json_lines_in_a_json_file(tmp_path):
    rows = [{"text": "a"}, {"text": "b"}]
    assert load(write(tmp_path / "a.json", json.dumps(rows, indent=2)))["text"] == ["a", "b"]
    lines = "\n".join(json.dumps(row) for row in rows)
    assert load(write(tmp_path / "b.json", lines))["text"] == ["a", "b"]
    with pytest.raises(DataError, match=r"c\.json: malformed JSON at line 3, column 1"):
        load(write(tmp_path / "c.json", '[{"text": "a"},\n {"text": "b"},\n'))


# --- tables ---


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separator_is_found(tmp_path, separator):
    lines = [["prompt", "chosen", "rejected"], ['"a, b; c"', "d", "e"], ["f", '"g\nh"', '"say ""i"""']]
    path = write(tmp_path / "a.csv", "\n".join(separator.join(line) for line in lines) + "\n")
    rows = load(path)
    assert rows["prompt"] == ["a, b; c", "f"]
    assert rows["chosen"] == ["d", "g\nh"]
    assert rows["rejected"] == ["e", 'say "i"']
    assert rows["_row"] == [1, 2]


def test_one_column_with_commas_in_its_text():
    assert sniff_separator("text\nhello; you\n") == ","
    assert sniff_separator("a;b\nx, y, z;1\n") == ";"


def test_windows_1252_is_read_with_a_warning(tmp_path, caplog):
    path = write(tmp_path / "a.csv", "Frage;Gut\nWas?;Café – “gut”\n".encode("cp1252"))
    assert load(path)["Gut"] == ["Café – “gut”"]
    assert "line 2: not UTF-8; read as Windows-1252" in caplog.text


def test_neither_utf8_nor_windows_1252(tmp_path):
    path = write(tmp_path / "a.csv", b"text,b\nfine,1\n\x81\x8d,2\n")
    with pytest.raises(DataError, match="line 3: neither UTF-8 nor Windows-1252"):
        load(path)


def test_wrong_number_of_fields_is_a_bad_row(tmp_path):
    path = write(tmp_path / "a.csv", "a,b\n1,2\n3\n4,5\n")
    with pytest.raises(DataError, match=r"row 2: 1 fields \(line 3\), but the header has 2"):
        load(path)
    assert load(path, on_bad_row="skip")["a"] == ["1", "4"]


def test_malformed_quotes_and_double_headers(tmp_path):
    with pytest.raises(DataError, match=r"line 2: malformed csv"):
        load(write(tmp_path / "a.csv", 'a,b\n"open,2\n'))
    with pytest.raises(DataError, match="names a twice"):
        load(write(tmp_path / "b.csv", "a,a\n1,2\n"))


def test_nameless_index_column(tmp_path):
    assert columns_of(load(write(tmp_path / "a.csv", ",prompt\n0,hi\n"))) == ["column_1", "prompt"]


def test_lines_of_text(tmp_path):
    rows = load(write(tmp_path / "a.txt", "one\r\n\ntwo\n"))
    assert rows["text"] == ["one", "two"]


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b"]}), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet", split="train[1:]")["_row"] == [2]
    with pytest.raises(DataError, match="not a parquet file"):
        load(write(tmp_path / "b.parquet", b"PAR1 nothing"))


def test_unknown_suffix(tmp_path):
    with pytest.raises(DataError, match=r"ending in \.xlsx is not known.*\.jsonl"):
        load(write(tmp_path / "a.xlsx", b"PK"))


# --- whatever is in a file, only DataError comes out ---

JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


def load_anything(folder: Path, name: str, data: bytes) -> None:
    path = write(folder / name, data)
    for on_bad_row in ("error", "skip"):
        try:
            rows = load(path, on_bad_row=on_bad_row)
        except DataError as error:
            assert name in str(error)
        else:
            assert len(list(rows)) == len(rows) > 0


@FUZZ
@given(data=st.binary(max_size=200), name=st.sampled_from(["f.jsonl", "f.json", "f.csv", "f.tsv", "f.txt"]))
@example(data=b"\xff\xfe\x00", name="f.csv")
@example(data=b"a,b\n\x00,\r\r\n", name="f.csv")
@example(data=b"[" * 100_000, name="f.jsonl")
@example(data=b'{"a":' * 300 + b"1" + b"}" * 300, name="f.jsonl")
@example(data=b'{"text": "\\ud800"}\n{"text": "x"}', name="f.jsonl")
@example(data=b'{"\\ud800": 1}', name="f.jsonl")
@example(data=b'{"n": ' + b"9" * 5000 + b"}", name="f.jsonl")
@example(data=b'{"n": 99999999999999999999}', name="f.jsonl")
@example(data=b'{"a": {}}', name="f.jsonl")
@example(data=b'{"": 1, "_row": 2}', name="f.jsonl")
def test_random_bytes(tmp_path, data, name):
    load_anything(tmp_path, name, data)


@FUZZ
@given(values=st.lists(st.dictionaries(st.sampled_from(["prompt", "other", ""]), JSON_LIKE), max_size=4))
def test_random_objects(tmp_path, values):
    data = "\n".join(json.dumps(value) for value in values)
    load_anything(tmp_path, "f.jsonl", data.encode())


@FUZZ
@given(text=st.text(alphabet='a",;\t\n\r x\x00é', max_size=60))
def test_random_tables(tmp_path, text):
    load_anything(tmp_path, "f.csv", text.encode())


def test_no_warnings_escape(jsonl):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(jsonl({"text": "x"}))
