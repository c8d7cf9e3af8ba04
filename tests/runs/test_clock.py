"""A clock that jumps, while a run goes on or between two parts of it, spoils no duration and no order."""

import json
import os
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from rlhf_peft.cli import execute
from rlhf_peft.runs import Checkpoints, History, RunFolder

YEAR = 365 * 86400.0


@pytest.fixture
def jump(monkeypatch):
    """Set the clock forward or back by so many seconds."""
    real, off = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + off[0])

    def jump(seconds):
        off[0] += seconds

    return jump


def line(run, step):
    run.append_metrics("sft", step, {"loss": 1.0})


def times(run):
    return [json.loads(text)["time"] for text in (run.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("way", [YEAR, -YEAR])
def test_a_jump_while_a_run_goes_on(tmp_path, jump, way):
    run = RunFolder.create(tmp_path, "r")
    line(run, 1), jump(way), line(run, 2), jump(-way), line(run, 3), jump(way)
    run.finish("done")
    assert all(0 <= after - before < 10 for before, after in pairwise(times(run)))
    assert 0 <= History.of(run.path).seconds < 10


@pytest.mark.parametrize("way", [YEAR, -YEAR])
@pytest.mark.parametrize("ended", ["stopped", None])
def test_a_jump_between_two_parts_of_a_run(tmp_path, jump, way, ended):
    run = RunFolder.create(tmp_path, "r")
    line(run, 1), line(run, 2)
    if ended:
        run.finish(ended)
    run.release()
    jump(way)
    again = RunFolder.resume(tmp_path, "r")
    line(again, 3), line(again, 4)
    again.finish("done")
    history = History.of(run.path)
    assert all(before <= after for before, after in pairwise(times(run)))
    assert all(0 <= history.elapsed(before, after) < 10 for before, after in pairwise(times(run)))
    assert 0 <= history.seconds < 10


def test_a_run_whose_times_go_back_has_no_negative_seconds(tmp_path):
    """As runs of earlier versions may have them."""
    run = RunFolder.create(tmp_path, "r")
    run.finish("done")
    history = History.of(run.path)
    assert history.elapsed(2e9, 1e9) == 0


def test_the_newest_checkpoint_is_the_last_one_written_whatever_the_clock_says(tmp_path, jump):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoint = checkpoints.save(
            f"sft-{step}", {"stage": "sft"}, lambda folder: (folder / "x").write_text("")
        )
        os.utime(checkpoint.path, (1e9 - step * YEAR, 1e9 - step * YEAR))
        jump(-YEAR)
    assert checkpoints.newest()[0].name == "sft-3" and checkpoints.names()[-1] == "sft-3"


@pytest.mark.parametrize("started", [-1e10, 0, 1e15, 1e300, True, "yesterday", [1], None])
def test_a_beginning_that_is_no_time_hides_no_run(tmp_path, capsys, started):
    for name in ("a", "b"):
        run = RunFolder.create(tmp_path, name)
        run.write_recipe("name: r\nstages: []\n")
        run.finish("done")
    run.update_manifest(started=started)
    assert execute(["runs", "list", "--dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert sorted(text.split()[0] for text in shown if "done" in text) == ["a", "b"]
    assert execute(["runs", "show", str(tmp_path / "b")]) == 0


CLOCK = """
import os, time
real, jumps = time.time, [float(x) for x in os.environ["JUMPS"].split(",")]
calls = 0
def jumping():
    global calls
    calls += 1
    return real() + jumps[calls % len(jumps)]
time.time = jumping
"""


@pytest.mark.slow
def test_a_run_on_a_clock_that_jumps_at_every_look(tmp_path):
    """All of it in processes whose clock jumps by a year: run, interruption, resumption, list, report."""
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def program(*arguments, jumps):
        done = subprocess.run(
            [sys.executable, "-m", "rlhf_peft", *arguments],
            cwd=tmp_path,
            env={**environment, "JUMPS": jumps},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    data = {"name": "tiny", "size": 8, "part": "demonstrations"}
    stage = {"stage": "sft", "dataset": data, "batch_size": 4, "max_steps": 4}
    recipe = {
        "version": 1,
        "name": "r",
        "device": "cpu",
        "model": {"path": "builtin:tiny"},
        "stages": [stage],
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    times = program("run", "r.yaml", jumps=f"{YEAR},0,-{YEAR}")
    assert "-" not in "".join(text.split("left")[0] for text in times.splitlines() if " left" in text)
    (row,) = json.loads(program("runs", "list", "--json", jumps=f"0,{YEAR}"))
    assert 0 <= row["seconds"] < 600
    program("report", "r", jumps=f"0,-{YEAR}")
