"""Data files with something wrong in them, by seed: bytes, types, keys, encodings, shapes."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]

TOOL = {
    "name": "f",
    "description": "does f",
    "parameters": {"type": "object", "properties": {"x": {"type": "number"}}},
}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "f", "arguments": {"x": 1.5, "y": ["é", None, True]}},
}


def said(role: str, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def row_of(stage: str, number: int) -> Row:
    """A good row for a stage."""
    ask, answer = f"What is {number} + 1?", f"It is {number + 1}."
    talk = [said("user", ask), said("assistant", answer)]
    if stage == "sft":
        calls = [said("user", ask), said("assistant", None, tool_calls=[CALL]), said("tool", "2"), talk[1]]
        return {"messages": calls if number % 2 else talk, "tools": [{"type": "function", "function": TOOL}]}
    if stage == "preference":
        return {
            "prompt": talk[:1],
            "chosen": talk[1:],
            "rejected": [said("assistant", "No idea.")],
            "margin": 0.5,
        }
    if stage == "reward_model":
        return {"chosen": talk, "rejected": [talk[0], said("assistant", "No.")], "chosen_prob": 0.9}
    if stage == "kto":
        return {"prompt": ask, "completion": f" {answer}", "label": number % 2 == 0}
    return {"prompt": ask, "answer": str(number + 1), "_row": number}


STAGES = ("sft", "preference", "reward_model", "kto", "rl")
ODD: tuple[Any, ...] = (
    *(None, "", " ", 0, -1, 3.5, 1e308, float("nan"), 10**30, True, [], {}, "x", "\u0000", "\ud83d", "é" * 3),
    *([None], [[]], [{}], {"a": {"b": []}}, [said("user", "a")], [said("oracle", "a")], said("user", "a")),
    *(
        '[{"role": "user", "content": "a"}]',
        "[{'role': 'user', 'content': 'a'}]",
        "<|end|>",
        "[" * 300,
        "2020-01-01",
    ),
)
"""Values that stand in the place of others."""


def mutated(seed: int) -> tuple[str, str, bytes]:
    """A stage, a file's name and what it holds: a good file for that stage, changed in one to three ways."""
    draw = random.Random(seed)
    stage = draw.choice(STAGES)
    rows: list[Any] = [row_of(stage, number) for number in range(draw.randint(1, 6))]
    for _ in range(draw.randint(0, 2)):
        draw.choice(ROWS)(draw, rows)
    suffix, data = draw.choice(WRITERS)(draw, rows)
    for _ in range(draw.randint(0 if draw.random() < 0.4 else 1, 2)):
        data = draw.choice(BYTES)(draw, data)
    return stage, f"case{seed}.{suffix}", data


# --- rows ---


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place inside of a value: what holds it, and its key there."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [found for key in keys for found in [(value, key), *places(value[key])]]


def swap(draw: random.Random, rows: list[Any]) -> None:
    holder, key = draw.choice(places(rows))
    holder[key] = copy.deepcopy(draw.choice(ODD))


def remove(draw: random.Random, rows: list[Any]) -> None:
    holder, key = draw.choice(places(rows)[1:] or [(rows, 0)])
    del holder[key]
    if not rows:
        rows.append({})


def rename(draw: random.Random, rows: list[Any]) -> None:
    objects = [(holder, key) for holder, key in places(rows) if isinstance(holder, dict)]
    if objects:
        holder, key = draw.choice(objects)
        holder[
            draw.choice(["", "from", "value", "text", "name", "weight", "id", "système", "__row_number__"])
        ] = holder.pop(key)


def wrap(draw: random.Random, rows: list[Any]) -> None:
    holder, key = draw.choice(places(rows))
    for _ in range(draw.choice([1, 2, 60, 400])):
        holder[key] = [holder[key]] if draw.random() < 0.7 else {"a": holder[key]}


def write_inside(draw: random.Random, rows: list[Any]) -> None:
    holder, key = draw.choice(places(rows))
    holder[key] = json.dumps(holder[key]) if draw.random() < 0.7 else str(holder[key])


def repeat(draw: random.Random, rows: list[Any]) -> None:
    rows.append(copy.deepcopy(draw.choice(rows)))


ROWS: tuple[Callable[[random.Random, list[Any]], None], ...] = (
    swap,
    swap,
    swap,
    remove,
    rename,
    wrap,
    write_inside,
    repeat,
)

# --- files ---


def as_lines(draw: random.Random, rows: list[Any]) -> tuple[str, bytes]:
    lines = [json.dumps(row, ensure_ascii=draw.random() < 0.5) for row in rows]
    return draw.choice(["jsonl", "json", "ndjson"]), "\n".join(lines).encode("utf-8", "surrogatepass")


def as_array(draw: random.Random, rows: list[Any]) -> tuple[str, bytes]:
    indent = draw.choice([None, 1])
    value = draw.choice([rows, rows, {"data": rows}, {"train": rows, "test": rows}, rows[0]])
    return "json", json.dumps(value, indent=indent).encode()


def as_columns(draw: random.Random, rows: list[Any]) -> tuple[str, bytes]:
    names = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
    columns = {name: [row.get(name) for row in rows if isinstance(row, dict)] for name in names}
    return "json", json.dumps(columns).encode()


def as_table(draw: random.Random, rows: list[Any]) -> tuple[str, bytes]:
    suffix = draw.choice(["csv", "csv", "tsv"])
    names = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if suffix == "tsv" else draw.choice(",;"))
    writer.writerow(names)
    for row in (row for row in rows if isinstance(row, dict)):
        cells = [row.get(name) for name in names]
        writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
    return suffix, text.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(draw: random.Random, rows: list[Any]) -> tuple[str, bytes]:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    try:
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([row for row in rows if isinstance(row, dict)]), out
        )
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, UnicodeError, RecursionError):
        return as_lines(draw, rows)
    return "parquet", out.getvalue()


def as_text(draw: random.Random, rows: list[Any]) -> tuple[str, bytes]:
    return "txt", "\n".join(map(str, rows)).encode("utf-8", "surrogatepass")


WRITERS: tuple[Callable[[random.Random, list[Any]], tuple[str, bytes]], ...] = (
    *(as_lines, as_lines, as_lines, as_array, as_array, as_columns, as_table, as_table, as_parquet, as_text),
)

# --- bytes ---


def nothing(draw: random.Random, data: bytes) -> bytes:
    return data


def drop(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + data[start + draw.choice([1, 1, 3, 40]) :]


def truncate(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def insert(draw: random.Random, data: bytes) -> bytes:
    odd = [
        b"\x00",
        b"\xff",
        b"\xc3",
        b"\xef\xbb\xbf",
        b"\n",
        b"\r",
        b'"',
        b",",
        b"}",
        b"null",
        b"NaN",
        b"\\ud83d",
        b"\xed\xa0\xbd",
    ]
    start = draw.randrange(len(data) + 1)
    return data[:start] + draw.choice(odd) + data[start:]


def flip(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data or b"x")
    changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def reencode(draw: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    code = draw.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp1252", "utf-7", "shift_jis"])
    return text.encode(code, "replace")


def other_lines(draw: random.Random, data: bytes) -> bytes:
    return data.replace(b"\n", draw.choice([b"\r\n", b"\r", b"\n\n", b" \n", b"\xe2\x80\xa8"]))


def double_key(draw: random.Random, data: bytes) -> bytes:
    at = data.find(b'"', draw.randrange(len(data) + 1))
    return data if at < 0 else data[:at] + b'"prompt": "z", ' + data[at:]


BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(nothing, nothing, drop, truncate, insert, flip, reencode, other_lines, double_key),
)
