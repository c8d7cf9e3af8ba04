"""How a command can end: errors, signals, and a reader that goes away."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rlhf_peft import cli
from rlhf_peft.errors import GuardError, RlhfPeftError, UsageError
from rlhf_peft.recipe import shipped

from .cli_support import ROOT


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RlhfPeftError("the reward broke"), 1, "error: the reward broke\n"),
        (GuardError("loss is NaN at step 3"), 3, "stopped (exit 3): loss is NaN at step 3\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            ZeroDivisionError("division\nby zero"),
            1,
            "error: unexpected ZeroDivisionError: division by zero. "
            "For the whole story: rlhf-peft --traceback ...\n",
        ),
        (BrokenPipeError("a worker is gone"), 1, "error: unexpected BrokenPipeError: a worker is gone."),
    ],
)
def test_how_a_run_can_end(here, api, capsys, error, code, message):
    def run(recipe, **options):
        raise error

    api.run = run
    assert cli.execute(["run", "r.yaml"]) == code
    assert message in capsys.readouterr().err
    assert cli.execute(["--traceback", "run", "r.yaml"]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_sigterm_exits_143(here, api, capsys):
    def run(recipe, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    api.run = run
    before = signal.getsignal(signal.SIGTERM)
    assert cli.execute(["run", "r.yaml"]) == 143
    assert capsys.readouterr().err == "terminated\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_reader_that_goes_away_is_no_error():
    command = (
        f"{sys.executable} -m rlhf_peft recipes show {shipped.names()[0]} | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert done.stdout.strip() == "0"
    assert done.stderr == ""


def test_sighup_ends_a_verb_as_sigterm_does(here, api, capsys):
    def run(recipe, **options):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(5)

    api.run = run
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the suite itself may run under nohup
    try:
        assert cli.execute(["run", "r.yaml"]) == 129
    finally:
        signal.signal(signal.SIGHUP, before)
    assert capsys.readouterr().err == "hung up\n"


def test_sighup_stays_ignored_under_nohup(here, api, capsys):
    def run(recipe, **options):
        os.kill(os.getpid(), signal.SIGHUP)
        raise UsageError("went on")

    api.run = run
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.execute(["run", "r.yaml"]) == 2
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "went on" in capsys.readouterr().err
