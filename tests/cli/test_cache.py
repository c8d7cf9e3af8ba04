from __future__ import annotations

import json

import pytest

from rlhf_peft.cli import execute
from rlhf_peft.data import cache, load_rows


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def filled(tmp_path, place):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    load_rows(path=path)
    return path


def test_list(filled, place, capsys):
    assert execute(["cache", "list", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    (entry,) = output["entries"]
    assert (entry["kind"], entry["about"], entry["rows"]) == ("rows", str(filled), 2)
    assert output["bytes"] == entry["bytes"] == sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
    assert execute(["cache", "list"]) == 0
    assert "of at most 20.0 GB" in capsys.readouterr().out


def test_clear(filled, place, capsys):
    assert execute(["cache", "clear"]) == 2 and len(cache.entries()) == 1
    assert execute(["cache", "clear", "--yes"]) == 0
    assert cache.entries() == [] and list(place.iterdir()) == []
    assert execute(["cache", "list"]) == 0
    assert "holds nothing" in capsys.readouterr().err


def test_a_cache_that_is_off(monkeypatch, capsys):
    monkeypatch.setenv(cache.FOLDER_VARIABLE, "off")
    assert execute(["cache", "list"]) == 0
    assert execute(["cache", "clear", "--yes"]) == 2
    assert capsys.readouterr().err.count("switched off by RLHF_PEFT_CACHE") == 2
