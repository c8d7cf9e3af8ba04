"""`eval` and `export` that are killed leave the run as it was, and the next one works."""

import json
import os

import pytest

from rlhf_peft.cli import execute

from ..children import killed_at

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def contents(run):
    return {
        str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"
    }


@pytest.mark.slow
def test_an_evaluation_that_is_killed_at_the_write(trained, tmp_path):
    before, file = contents(trained), tmp_path / "s.jsonl"
    file.write_text("old")

    def evaluate():
        return execute(["eval", str(trained), "--size", "2", "--samples", str(file)])

    for touch in range(1, 10):
        killed = killed_at(tmp_path, touch, evaluate)
        text = file.read_text()
        assert text == "old" or len([json.loads(line) for line in text.splitlines()]) == 2
        assert contents(trained) == before
        if not killed:
            break
    assert touch > 3 and os.listdir(tmp_path) == ["s.jsonl"]


@pytest.mark.parametrize("target", ["peft", pytest.param("merged", marks=pytest.mark.slow)])
def test_an_export_that_is_killed_can_be_done_again(trained, tmp_path, target):
    before, out = contents(trained), tmp_path / "out"

    def export():
        return execute(["export", str(trained), "--to", target, "-o", str(out)])

    touch, killed = 0, True
    while killed:
        touch += 1 if touch < 4 else 5
        killed = killed_at(tmp_path, touch, export)
        assert not out.exists() or (out / "README.md").is_file()
        assert contents(trained) == before
        if killed and out.exists():
            break
    assert touch > 5
    assert out.exists() or execute(["export", str(trained), "--to", target, "-o", str(out)]) == 0
    assert os.listdir(tmp_path) == ["out"]
