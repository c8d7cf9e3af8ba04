"""A dataset, looked at before anything is trained on it."""

import json
import shlex

import pytest

from rlhf_peft.cli import execute
from rlhf_peft.data.inspect import inspect, model_encoder
from rlhf_peft.engine import BaseSpec


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(number, chosen="yes it is so", rejected="no"):
    return {"prompt": f"Question {number}?", "chosen": chosen, "rejected": rejected}


def test_preferences_with_everything_wrong(tmp_path):
    rows = [pair(i) for i in range(20)] + [pair(3), pair(4), pair(30, "same", "same"), pair(31, "", "x")]
    found = inspect(write(tmp_path / "p.jsonl", rows))
    assert (found.rows, found.usable, found.duplicates) == (24, 22, 2)
    assert {kind: bad.count for kind, bad in found.bad.items()} == {
        "with chosen equal to rejected": 1,
        "with an empty chosen": 1,
    }
    assert found.bad["with chosen equal to rejected"].first == 23
    assert found.format.kind == "preference" and found.longer_chosen == 1.0
    assert found.advice[0].startswith("chosen is longer in 100% of pairs: a reward model will learn length")
    assert "DPO" in found.advice[1] and f'"path": "{tmp_path}/p.jsonl"' in found.advice[2]


def test_thousands_of_pairs_suit_a_reward_model(tmp_path):
    rows = [pair(i, "one two", "two one") for i in range(1200)]
    found = inspect(write(tmp_path / "p.jsonl", rows))
    assert found.longer_chosen == 0.5 and "enough for a reward model" in found.advice[0]


def test_answers_that_can_be_checked_suit_grpo(tmp_path):
    rows = [{"prompt": f"{i} + 1?", "answer": f"It is so.\n#### {i + 1:,}"} for i in range(30)]
    found = inspect(write(tmp_path / "p.jsonl", rows))
    assert found.format.kind == "prompt_only" and "GRPO" in found.advice[0]


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"prompt": "a b", "completion": "c"}, "supervised"),
        ({"prompt": "a", "completion": "b", "label": True}, "KTO"),
        ({"prompt": "a b"}, "prompts alone"),
    ],
)
def test_other_formats(tmp_path, row, word):
    assert word in inspect(write(tmp_path / "p.jsonl", [row, {**row, "prompt": "c"}])).advice[0]


def test_spreadsheets(tmp_path):
    text = "Frage;Gut;Schlecht\nWas?;schön;häßlich\n"
    (tmp_path / "p.csv").write_bytes(text.encode("cp1252"))
    found = inspect(str(tmp_path / "p.csv"))
    assert found.format is None and any("Windows-1252" in note for note in found.notes)
    assert 'separator ";"' in found.notes and "--columns '{prompt: YOUR_COLUMN" in found.advice[1]
    columns = {"prompt": "Frage", "chosen": "Gut", "rejected": "Schlecht"}
    mapped = inspect(str(tmp_path / "p.csv"), columns=columns)
    assert mapped.format.kind == "preference" and '"chosen": "Gut"' in mapped.advice[-1]
    (tmp_path / "q.csv").write_bytes(("\ufeff" + "prompt,completion\na,b\n").encode())
    assert inspect(str(tmp_path / "q.csv")).format.kind == "prompt_completion"


def test_lengths_in_tokens_and_what_the_context_cuts(tmp_path):
    rows = [{"prompt": "a fox", "completion": " is happy"}, {"prompt": "a fox " * 200, "completion": " x"}]
    found = inspect(
        write(tmp_path / "p.jsonl", rows), encoder=model_encoder(BaseSpec("builtin:tiny").location, 64)
    )
    assert found.unit == "tokens" and found.limit == 64 and found.too_long == 1
    assert len(found.lengths["prompt"]) == 2


def test_at_the_command_line(tmp_path, capsys):
    place = write(tmp_path / "p.jsonl", [pair(i, "a b c", "d e f") for i in range(6)])
    assert execute(["data", place]) == 0
    out = capsys.readouterr().out
    assert (
        "6 rows; format: preference" in out
        and "length bias: chosen is longer in 50% of pairs" in out
        and "#" in out
    )
    assert execute(["data", place, "--json", "--model", "builtin:tiny"]) == 0
    assert json.loads(capsys.readouterr().out)["unit"] == "tokens"
    assert execute(["data", write(tmp_path / "q.jsonl", [pair(1, "x", "x"), pair(2)])]) == 1
    assert "unusable: 1 with chosen equal to rejected (first: row 1" in capsys.readouterr().out
    assert execute(["data", str(tmp_path / "none.jsonl")]) == 2


def test_real_preferences(ultrafeedback, hh):
    found = inspect(str(ultrafeedback))
    assert (found.rows, found.usable, found.duplicates) == (1000, 994, 0)
    assert found.bad["with chosen equal to rejected"].count == 4 and 0.5 < found.longer_chosen < 0.6
    assert "DPO" in found.advice[0] and '"on_bad_row": "skip"' in found.advice[1]
    found = inspect(str(hh))
    assert (found.rows, found.usable) == (1500, 1496) and "reward model" in found.advice[0]


def test_real_answers_that_can_be_checked(gsm8k):
    found = inspect(str(gsm8k))
    assert found.format is None and found.advice[1].endswith("--columns '{prompt: question}'")
    found = inspect(str(gsm8k), columns={"prompt": "question"})
    assert found.rows == 2000 and "column answer holds numbers that can be checked: GRPO" in found.advice[0]
    assert '"columns": {"prompt": "question"}' in found.advice[1]


WORKED = "One and one are put together, and that makes two.\n#### 2"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a b", "completion": "c d"},
        {"prompt": "a b", "completion": "c d", "label": True},
        {"prompt": "a b"},
        {"prompt": "a b", "chosen": "c", "rejected": "d"},
        {"question": "1 + 1?", "answer": WORKED},
        {"question": "1 + 1?", "solution": "2"},
    ],
    ids=" ".join,
)
def test_the_command_to_paste_makes_a_recipe_that_can_use_the_rows(tmp_path, monkeypatch, capsys, row):
    monkeypatch.chdir(tmp_path)
    place = write(tmp_path / "it's mine.jsonl", [{**row, next(iter(row)): f"{i} + 1?"} for i in range(40)])
    columns = {"prompt": "question"} if "question" in row else None
    command = shlex.split(inspect(place, columns=columns).advice[-1])
    assert execute(command[1:]) == 0
    small = ["model.path=builtin:tiny", "model.max_length=512", "device=cpu"]
    assert execute(["validate", "my.yaml", *small]) == 0
    if command[3] in ("ppo", "grpo-gsm8k") and WORKED not in row.values():
        return  # another stage's rows are on the hub
    assert execute(["validate", "my.yaml", "--data", *small]) == 0
    assert "40 rows" in (out := capsys.readouterr()).out + out.err
