"""A program that is killed as it writes leaves the old file or the new one, and nothing that is in the way."""

import json
import os
import shutil

import pytest

from rlhf_peft.cli import execute
from rlhf_peft.labelling.store import Pair, Store
from rlhf_peft.runs import RunFolder, is_run, read_manifest, remove_run

from ..analysis.conftest import make_run  # noqa: F401 (a fixture)
from ..children import killed_at

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def at_every_touch(folder, work, after, before=lambda: None):
    """Kill the work at each of its touches of the folder's files, look `after` each time; returns how often it died."""
    touch = 0
    while True:
        touch += 1
        before()
        killed = killed_at(folder, touch, work)
        after()
        if not killed:
            return touch - 1


def left(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".tmp"))


def make(folder, **how):
    def work():
        RunFolder.create(folder, "r", **how).release()

    return work


def test_a_new_run_that_was_killed_is_in_nobodys_way(tmp_path):
    def again():
        run = RunFolder.create(tmp_path, "r", overwrite=is_run(tmp_path / "r"))
        assert run.manifest["status"] == "running" and left(run.path) == []
        run.release()
        shutil.rmtree(run.path)

    assert at_every_touch(tmp_path, make(tmp_path), again) > 3


def test_a_run_that_was_killed_as_it_replaced_another_can_be_replaced(tmp_path):
    path = tmp_path / "r"

    def finished():
        run = RunFolder.create(tmp_path, "r", overwrite=path.is_dir())
        run.append_metrics("sft", 1, {"loss": 1.0})
        (path / "mine.txt").write_text("a file of the user's")
        run.finish("done")

    def again():
        assert is_run(path)
        RunFolder.create(tmp_path, "r", overwrite=True).release()
        assert (path / "mine.txt").is_file() and left(path) == []
        assert not (path / "metrics.jsonl").exists()

    assert at_every_touch(tmp_path, make(tmp_path, overwrite=True), again, finished) > 3


def test_a_run_that_is_half_gone_is_not_taken_for_a_whole_one(tmp_path):
    """What was finished is no more, as soon as anything of it was removed."""
    run = RunFolder.create(tmp_path, "r")
    run.append_metrics("sft", 1, {"loss": 1.0})
    run.finish("done")

    def look():
        assert (run.path / "metrics.jsonl").exists() or read_manifest(run.path)["status"] == "running"

    touch = 0
    while killed_at(tmp_path, touch := touch + 1, make(tmp_path, overwrite=True)):
        look()


def test_what_a_killed_writer_left_goes_with_the_run(tmp_path):
    run = RunFolder.create(tmp_path, "r")
    assert killed_at(run.path, 2, lambda: run.update_manifest(seed=1)) and len(left(run.path)) == 1
    run.finish("done")
    assert left(run.path) == []
    (run.path / ".metrics.jsonl.99999999.rlhf-peft.tmp").write_text("half")
    remove_run(run.path)
    assert not run.path.exists()


def test_a_report(make_run, tmp_path):  # noqa: F811
    run, out = make_run("one"), tmp_path / "out"
    out.mkdir()
    assert execute(["report", str(run.path), "-o", str(tmp_path / "r.html")]) == 0  # imports what it needs
    for old in (None, "the old report"):
        if old:
            (out / "r.html").write_text(old)

        def look(old=old):
            text = (out / "r.html").read_text() if (out / "r.html").exists() else None
            assert text == old or text.endswith("</html>")

        def write():
            return execute(["report", str(run.path), "-o", str(out / "r.html")])

        assert at_every_touch(out, write, look) >= 4
    assert os.listdir(out) == ["r.html"]


def test_what_people_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    store = Store(tmp_path / "x.db")
    store.add([Pair(f"p{i}", "good", "bad") for i in range(3)])
    for pair in (1, 2, 3):
        store.judge(pair, "ann", "a")
    (out / "p.jsonl").write_text("old")
    assert execute(["label", "--db", "x.db", "--export", "q.jsonl"]) == 0  # imports what it needs

    def look():
        text = (out / "p.jsonl").read_text()
        assert text == "old" or len([json.loads(line) for line in text.splitlines()]) == 3

    def write():
        return execute(["label", "--db", "x.db", "--export", str(out / "p.jsonl")])

    assert at_every_touch(out, write, look) >= 4
    assert os.listdir(out) == ["p.jsonl"] and len(store.judgements()) == 3
