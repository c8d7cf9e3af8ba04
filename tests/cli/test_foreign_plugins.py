"""Installed plugins whose import misbehaves: every command goes on or says whose fault it is, and how to go on.

The plugins are imported by a program that has imported everything else before, except where it may not end well.
"""

import json
import os
import subprocess
import sys

import pytest

from ..ready_program import ready_program

PLUGIN = """
from rlhf_peft.plugin import Options, hookimpl
class Mine:
    class Options(Options): pass
    roles, timeout = (), None
    def __init__(self, options): pass
@hookimpl
def rlhf_peft_register_rewards(register): register("{reward}", Mine)
"""
QUICK = "import rlhf_peft.foreign as f\nf.PATIENCE, f.IMPORT_LIMIT = 0.5, 2.0\n"


@pytest.fixture
def program(tmp_path):
    """The program, beside a distribution whose module begins with some code."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(QUICK)

    def install(code, name="odd", reward="odd", distribution="dist-odd"):
        (place / f"m_{name}.py").write_text(code + PLUGIN.format(reward=reward))
        info = place / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[rlhf_peft]\n{name} = m_{name}\n")

    def run(*arguments, timeout=100, new=False, **variables):
        path = os.pathsep.join(filter(None, (str(place), os.environ.get("PYTHONPATH"))))
        options = {
            "env": {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables},
            "cwd": tmp_path,
            "timeout": timeout,
        }
        if not new:
            return ready_program().run(arguments, **options)
        return subprocess.run(
            [sys.executable, "-m", "rlhf_peft", *arguments], capture_output=True, text=True, **options
        )

    run.install = install
    return run


def rows(done):
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_one_that_hangs_is_named_and_left_out(program):
    program.install("import time\ntime.sleep(3600)\n")
    done = program("plugins", "list", "--json")
    assert rows(done)["odd"]["reason"] == "its import failed: TimeoutError: it took longer than 2 s"
    assert "plugin odd (dist-odd 1.2) has been importing for 0.5 s" in done.stderr
    assert "--no-plugins" in done.stderr and "plugins uninstall dist-odd" in done.stderr
    for way in ({"RLHF_PEFT_DISABLE_PLUGINS": "dist-odd"}, {}):
        done = program(*([] if way else ["--no-plugins"]), "validate", "quickstart", **way)
        assert done.returncode == 0 and "importing" not in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import ctypes\nctypes.string_at(0)\n", marks=pytest.mark.slow),
        pytest.param("import os\nos.kill(os.getpid(), 9)\n", marks=pytest.mark.slow),
        pytest.param("import ctypes\nctypes.CDLL(None)._exit(0)\n", marks=pytest.mark.slow),
    ],
)
def test_one_that_ends_the_process_is_found_by_the_doctor(program, code):
    program.install(code)
    program.install("", name="fine", reward="fine", distribution="dist-fine")
    done = program("doctor", "--json", new=True)
    assert done.returncode == 1
    (findings,) = [row for row in json.loads(done.stdout) if row["what"].startswith("plugin")]
    assert findings["found"].startswith("plugin odd (dist-odd 1.2) ended the process with status ")
    assert "rlhf-peft plugins uninstall dist-odd" in findings["remedy"]
    assert program("--no-plugins", "plugins", "list").returncode == 0


@pytest.mark.slow
def test_a_crash_says_in_which_file_it_was(program):
    program.install("import ctypes\nctypes.string_at(0)\n")
    done = program("plugins", "list", new=True)
    assert done.returncode != 0 and "Segmentation fault" in done.stderr and "m_odd.py" in done.stderr


def test_a_thread_does_not_keep_the_program_from_ending(program):
    program.install(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,), name='mine').start()\n"
    )
    done = program("plugins", "list", "--json", timeout=60)
    assert rows(done)["odd"]["notes"] == ["has started the threads mine"]
    assert "plugin odd (dist-odd 1.2): its thread mine goes on" in done.stderr


CHANGES = """
import builtins, gc, logging, os, signal, socket, sys, warnings
os.write(1, b"raw noise")
os.environ["GIVEN"] = "theirs"
os.environ["NEW"] = "theirs"
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
sys.stdout = sys.stderr = open(os.devnull, "w")
sys.setrecursionlimit(90)
logging.disable(100)
logging.getLogger("rlhf_peft").handlers.clear()
gc.disable(), os.umask(0o777), socket.setdefaulttimeout(0.001)
sys.excepthook = print
"""


def test_what_its_import_changes_is_put_back_or_told(program):
    program.install(CHANGES)
    done = program("validate", "quickstart", new=True, GIVEN="mine")
    assert done.returncode == 0 and "raw noise" not in done.stdout and "raw noise" in done.stderr
    message = "warning: plugin odd (dist-odd 1.2) has set the environment variables NEW as it was imported"
    assert message in done.stderr.splitlines()


@pytest.mark.slow
def test_one_that_replaces_functions_of_torch_is_left_out(program):
    code = "import torch\ntorch.nn.functional.softmax = lambda *a, **k: None\ntorch.Tensor.softmax = None\n"
    program.install(code)
    reason = rows(program("plugins", "list", "--json"))["odd"]["reason"]
    assert reason.startswith(
        "as it was imported it replaced torch.nn.functional.softmax, torch.Tensor.softmax"
    )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"reward": "length"}, "the name length is taken: reward length (rlhf-peft "),
        ({"reward": "fine"}, "the name fine is taken: reward fine (dist-fine 1.2)"),
        ({"distribution": "RLHF_PEFT"}, "it calls itself rlhf-peft, which is this program's own name"),
    ],
)
def test_one_that_takes_a_name_is_left_out(program, how, message):
    program.install("", name="fine", reward="fine", distribution="dist-fine")
    program.install("", **how)
    row = rows(program("plugins", "list", "--json"))
    assert row["odd"]["status"] == "broken" and message in row["odd"]["reason"]
    assert row["fine"]["status"] == "ok"


@pytest.mark.slow
def test_an_interrupted_import_is_named(program):
    program.install("raise KeyboardInterrupt\n")
    done = program("plugins", "list")
    assert done.returncode == 130 and "plugin odd (dist-odd 1.2) was being imported" in done.stderr
