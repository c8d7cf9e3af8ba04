"""A command in a forked child is what it is in a new process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from .ready_program import ready_program

PLUGIN = """
import json, os, signal, sys, threading
from pathlib import Path
from rlhf_peft import library_messages
from rlhf_peft.plugin import Options, hookimpl

before = getattr(library_messages, "seen", 0)
library_messages.seen = before + 1
said = {
    "cwd": os.getcwd(), "given": os.environ.get("GIVEN"), "argv": sys.argv[1:], "path": sys.path[:2], "before": before,
    "threads": threading.active_count(), "sigint": signal.getsignal(signal.SIGINT).__qualname__,
    "terminals": [os.isatty(number) for number in range(3)], "stdin": sys.stdin.read(),
}
Path(os.environ["SAID"]).write_text(json.dumps(said))

class Mine:
    class Options(Options): pass
    roles, timeout = (), None
    def __init__(self, options): pass

@hookimpl
def rlhf_peft_register_rewards(register): register("mine", Mine)
"""


def in_new_process(arguments, *, input="", **options):
    command = [sys.executable, "-m", "rlhf_peft", *arguments]
    return subprocess.run(command, input=input, capture_output=True, text=True, **options)


def test_it_sees_what_a_new_process_sees(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    command = ["validate", "quickstart", "--plugin", "mine.py"]
    seen = []
    for run in (in_new_process, ready_program().run, ready_program().run):
        file = tmp_path / f"{len(seen)}.json"
        path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        env = {**os.environ, "GIVEN": "to it", "SAID": str(file), "PYTHONPATH": path}
        done = run(command, input="Hello", cwd=tmp_path, env=env)
        seen.append((done.returncode, done.stdout, done.stderr, json.loads(file.read_text())))
    assert seen[0][0] == 0 and seen[0][3]["given"] == "to it" and seen[0][3]["before"] == 0
    assert seen[1] == seen[2] == seen[0]


@pytest.mark.parametrize("command", [["--version"], ["no-such-verb"], ["validate", "no-such-file.yaml"]])
def test_it_ends_as_a_new_process_does(command):
    new, forked = in_new_process(command), ready_program().run(command)
    assert (new.returncode, new.stdout, new.stderr) == (forked.returncode, forked.stdout, forked.stderr)


def test_a_signal_reaches_it(tmp_path):
    (tmp_path / "slow.py").write_text("open('begun', 'w').close()\nimport time\ntime.sleep(60)\n")
    with open(tmp_path / "out", "w+") as file:
        program = ready_program()
        child = program.start(
            ["validate", "quickstart", "--plugin", "slow.py"], [file.fileno()] * 3, cwd=tmp_path
        )
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(child, signal.SIGINT)
        assert program.wait() == 130
        file.seek(0)
        assert "interrupted" in file.read()


def test_one_that_takes_too_long_is_ended(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    command = ["validate", "quickstart", "--plugin", "slow.py"]
    with pytest.raises(subprocess.TimeoutExpired):
        ready_program().run(command, cwd=tmp_path, timeout=1)
    assert ready_program().run(["--version"]).returncode == 0
