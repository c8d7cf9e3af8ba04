from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlhf_peft.data.files import sniff_separator
from rlhf_peft.data.load import load_rows
from rlhf_peft.data.rows import ROW, columns_of
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
    assert rows[ROW] == [1, 3]


def test_malformed_line_is_named(jsonl):
    path = jsonl({"prompt": "a"}, '{"prompt": "b"', {"prompt": "c"})
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2: malformed JSON at column 15.*on_bad_row=skip"):
        load(path)


def test_malformed_lines_are_left_out_when_asked(jsonl, caplog):
    path = jsonl({"prompt": "a"}, "{", "[1]", {"prompt": "c"})
    rows = load(path, on_bad_row="skip")
    assert rows["prompt"] == ["a", "c"]
    assert rows[ROW] == [1, 4]
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


def test_rows_are_kept_as_they_were(jsonl):
    """No key is added to an object, and a value may be of another type than in the row before."""
    rows = [
        {"prompt": "a", "answer": "x", "call": {"city": "Oslo"}, "n": 1},
        {"prompt": [{"role": "user", "content": "c"}], "answer": {"n": 1}, "call": {"a": None}, "n": 2.5},
        {"prompt": "b", "answer": [1, "2", None], "call": {"city": 3}, "n": 3},
    ]
    kept = load(jsonl(*rows)).remove_columns(ROW)
    assert list(kept) == rows


@pytest.mark.parametrize(
    "text, shape",
    [
        ('{"prompt": ["a", "b"], "completion": ["c", "d"]}', "a table by column"),
        ('{"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}}', "a table by column"),
        (
            '{"columns": ["prompt", "completion"], "index": [0, 1], "data": [["a", "c"], ["b", "d"]]}',
            "columns and data",
        ),
        (
            '{"data": [{"prompt": "a", "completion": "c"}, {"prompt": "b", "completion": "d"}]}',
            "the rows under 'data'",
        ),
        (
            '{"version": 1,\n "rows": [{"prompt": "a", "completion": "c"},\n {"prompt": "b", "completion": "d"}]}',
            "'rows'",
        ),
        (
            '[{"prompt": "a", "completion": "c"}]\n[{"prompt": "b", "completion": "d"}]',
            "2 arrays one after the other",
        ),
        (
            '[{"prompt": "a", "completion": "c"}][{"prompt": "b", "completion": "d"}]',
            "2 arrays one after the other",
        ),
        (
            '{\n "prompt": "a",\n "completion": "c"\n}\n{\n "prompt": "b",\n "completion": "d"\n}\n',
            "objects one after",
        ),
        (
            '{"prompt": "a", "completion": "c"}{"prompt": "b", "completion": "d"}',
            "objects one after the other",
        ),
    ],
)
def test_tables_in_other_shapes(tmp_path, caplog, text, shape):
    rows = load(write(tmp_path / "a.json", text))
    assert list(rows.remove_columns(ROW)) == [
        {"prompt": "a", "completion": "c"},
        {"prompt": "b", "completion": "d"},
    ]
    assert shape in caplog.text and "2 rows" in caplog.text


@pytest.mark.parametrize(
    "text, found",
    [
        (
            '[{"prompt": "a"},\n{"prompt": "b"},]',
            r"line 2, column 17.*A comma stands before the closing bracket",
        ),
        ('{"train": [{"text": "a"}], "test": [{"text": "b"}]}', r"several tables \(train, test\)"),
        ("nothing", "malformed JSON at line 1, column 1"),
        ("3", "expected a JSON object"),
    ],
)
def test_shapes_that_are_none(tmp_path, text, found):
    with pytest.raises(DataError, match=found):
        load(write(tmp_path / "a.json", text))


@pytest.mark.parametrize(
    "row", [{"messages": [{"role": "user", "content": "a"}]}, {"text": "a"}, {"prompt": "a", "n": [1]}]
)
def test_one_row_is_a_row(tmp_path, row):
    assert list(load(write(tmp_path / "a.json", json.dumps(row))).remove_columns(ROW)) == [row]


def test_columns_that_no_table_knows_do_not_spoil_the_others(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {"text": ["a", "b"], "more": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64()))}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(load(tmp_path / "a.parquet").remove_columns(ROW)) == [
        {"text": "a", "more": {"k": 1}},
        {"text": "b", "more": {}},
    ]


@pytest.mark.parametrize("name", ["_row", ROW])
def test_a_column_named_like_ours_does_no_harm(tmp_path, jsonl, name):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"], name: [70, 90]}), tmp_path / "a.parquet")
    for path in (tmp_path / "a.parquet", jsonl({"text": "a", name: 70}, {"text": "b", name: 90})):
        assert load(path)[ROW] == [1, 2]


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
    assert rows[ROW] == [1, 2]


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
    assert load(tmp_path / "a.parquet", split="train[1:]")[ROW] == [2]
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
@example(data=b'{"": 1, ROW: 2}', name="f.jsonl")
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


@pytest.mark.parametrize(
    "row, found",
    [
        ('{"text": "a \\ud83d b"}', r"row 1: it holds half of a surrogate pair \(\\ud83d\)"),
        ('{"text": {"a": ["\\udc00"]}}', "half of a surrogate pair"),
        ('{"text": "a", "text": "b"}', "malformed JSON: the key 'text' stands twice"),
        ('[{"text": "a", "text": "b"}]', "the key 'text' stands twice"),
    ],
)
def test_nothing_of_a_row_is_changed_or_dropped(tmp_path, row, found):
    for name in ("a.jsonl", "a.json"):
        if row.startswith("[") and name == "a.jsonl":
            continue
        (tmp_path / name).write_text(row)
        with pytest.raises(DataError, match=found):
            load(tmp_path / name)


@pytest.mark.parametrize("depth", [250, 500, 700, 900, 990, 2000])
@pytest.mark.parametrize(
    "row",
    [
        '{"text": "a", "x": %s}',
        '{"messages": [{"role": "assistant", "content": "y", "tool_calls": [{"name": "f", "arguments": {"a": %s}}]}]}',
        '{"messages": [{"role": "assistant", "content": "y", "x": %s}]}',
        '{"tools": [{"name": "f", "parameters": %s}], "messages": [{"role": "assistant", "content": "y"}]}',
    ],
)
def test_deep_nests_are_refused_by_row(tmp_path, row, depth):
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_text(row % ("[" * depth + "]" * depth))
        with pytest.raises(DataError, match=r"row 1: .*(nested|recursion)|nested|recursion"):
            load(tmp_path / name)
