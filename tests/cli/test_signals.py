"""Runs that are ended by signals, in processes of their own: what they leave is true."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rlhf_peft.cli import execute

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs signals of POSIX")
TINY = [
    "stages.sft.max_steps=500",
    "stages.sft.batch_size=4",
    "stages.sft.eval={}",
    "stages.sft.checkpoint.every=3",
]


def begin(folder, **how):
    """The quickstart, in its first stage, with a checkpoint there."""
    run = subprocess.Popen(
        [sys.executable, "-m", "rlhf_peft", "run", "quickstart", *TINY],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        **how,
    )
    return run


def wait_for(folder):
    begun = time.monotonic()
    while not list((folder / "runs" / "quickstart").glob("checkpoints/sft-*/checkpoint.json")):
        assert time.monotonic() - begun < 240, "no checkpoint came"
        time.sleep(0.1)


def status(folder, capsys):
    capsys.readouterr()
    assert execute(["runs", "list", "--dir", str(folder / "runs"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    return row["status"]


@pytest.mark.slow
def test_after_each_signal_the_status_is_true(tmp_path, capsys):
    # The terminal is closed: SIGHUP, and nothing can be written to it any more.
    above, below = pty.openpty()
    run = begin(tmp_path, stdout=below, stderr=below, stdin=below, start_new_session=True)
    os.close(below)
    wait_for(tmp_path)
    assert status(tmp_path, capsys) == "running"
    before = {p.name for p in (tmp_path / "runs" / "quickstart" / "checkpoints").iterdir()}
    os.close(above)
    os.kill(run.pid, signal.SIGHUP)
    assert run.wait(60) == 129
    assert status(tmp_path, capsys) == "stopped"
    left = {p.name for p in (tmp_path / "runs" / "quickstart" / "checkpoints").iterdir()}
    assert left and not any(name.startswith(".") for name in left) and (left != before or len(left) > 1)

    # A kill leaves no time to write anything down.
    shutil.rmtree(tmp_path / "runs")
    run = begin(tmp_path, stderr=subprocess.DEVNULL)
    wait_for(tmp_path)
    run.kill()
    run.wait(60)
    assert status(tmp_path, capsys) == "killed"

    # Ctrl-C twice: the second one while the first is being seen to.
    shutil.rmtree(tmp_path / "runs")
    run = begin(tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path)
    run.send_signal(signal.SIGINT)
    time.sleep(0.001)
    run.send_signal(signal.SIGINT)
    error = run.communicate(timeout=60)[1]
    assert run.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in error and "interrupted" in error
    assert status(tmp_path, capsys) == "stopped"
