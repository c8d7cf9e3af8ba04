"""A dataset, looked at before anything is trained on it."""

import json

import pytest

from rlhf_peft.cli import execute
from rlhf_peft.data.inspect import inspect, model_encoder


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
    assert (
        "DPO" in found.advice[1] and f"stages.preference.dataset.path={tmp_path}/p.jsonl" in found.advice[2]
    )


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
    assert mapped.format.kind == "preference" and "dataset.columns.chosen=Gut" in mapped.advice[-1]
    (tmp_path / "q.csv").write_bytes(("\ufeff" + "prompt,completion\na,b\n").encode())
    assert inspect(str(tmp_path / "q.csv")).format.kind == "prompt_completion"


def test_lengths_in_tokens_and_what_the_context_cuts(tmp_path):
    rows = [{"prompt": "a fox", "completion": " is happy"}, {"prompt": "a fox " * 200, "completion": " x"}]
    found = inspect(write(tmp_path / "p.jsonl", rows), encoder=model_encoder("builtin:tiny", 64))
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


@pytest.mark.parametrize("name", ["ultrafeedback", "hh", "gsm8k"])
def test_real_data(name, request):
    found = inspect(str(request.getfixturevalue(name)))
    assert (found.rows > 100 and found.usable > 0.9 * found.rows) or found.format is None
