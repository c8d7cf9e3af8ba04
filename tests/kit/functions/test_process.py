"""Reward files run as `python FILE` would run them, in a process of their own."""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from rlhf_peft.errors import PluginError, RewardError
from rlhf_peft.kit.functions import FunctionReward, process
from rlhf_peft.kit.functions.process import NotImported, inspect_function
from rlhf_peft.kit.functions.target import Target
from rlhf_peft.recipe.schema import RewardEntry
from rlhf_peft.registry import Registry
from rlhf_peft.stages.rl.rewards.rewards import Rewards
from tests.stages.rl.rewards.reward_doubles import Base, scored

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups")

LENGTHS = "def f(completions, **_): return [float(len(c)) for c in completions]\n"


@pytest.fixture
def offered(tmp_path):
    """Writes a file, and offers its function `f` as `--reward FILE:f` does; what is made is closed."""
    made = []

    def offer(text, *, name="mine.py", path=None, **keys):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        registry = Registry()
        registry.add_reward_function(path or file, "f", FunctionReward)
        made.append(Rewards(registry, [RewardEntry(name="f", **keys)], Base()))
        return made[-1]

    yield offer
    for each in made:
        each.close()


def alive(mark):
    """Processes of which the command line holds a word."""
    processes = []
    for each in psutil.process_iter():
        try:
            if mark in " ".join(each.cmdline()) and each.status() != psutil.STATUS_ZOMBIE:
                processes.append(each)
        except psutil.Error:
            continue
    return processes


# --- what stands beside the file ---


@pytest.mark.parametrize("where", ["top", "in the call"])
@pytest.mark.parametrize("named", ["absolute", "relative", "from its folder", "through ..", "a link"])
def test_a_module_and_a_file_beside_a_reward_are_found(offered, tmp_path, monkeypatch, where, named):
    folder = tmp_path / "proj"
    folder.mkdir()
    (folder / "helpers.py").write_text("def count(text): return float(len(text))\n")
    (folder / "table.txt").write_text("1")
    text = (
        "from pathlib import Path\nBASE = float((Path(__file__).resolve().parent / 'table.txt').read_text())\n"
        + ("from helpers import count\n" if where == "top" else "")
        + "def f(completions, **_):\n"
        + ("" if where == "top" else "    from helpers import count\n")
        + "    return [BASE + count(c) for c in completions]\n"
    )
    monkeypatch.chdir(folder if named == "from its folder" else tmp_path)
    if named == "a link":
        (tmp_path / "link.py").symlink_to(folder / "mine.py")
    path = {
        "absolute": None,
        "relative": "proj/mine.py",
        "from its folder": "mine.py",
        "through ..": "proj/../proj/mine.py",
        "a link": "link.py",
    }[named]
    made = offered(text, name="proj/mine.py", path=path)
    assert scored(made, completions=["a", "bcd"]).scores.tolist() == [2.0, 4.0]
    assert "helpers" not in sys.modules


def test_two_files_have_their_own_modules_beside_them(tmp_path):
    registry = Registry()
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "helpers.py").write_text(f"VALUE = {value}\n")
        file = tmp_path / name / f"{name}.py"
        file.write_text(
            f"import helpers\ndef {name}(completions, **_): return [helpers.VALUE] * len(completions)\n"
        )
        registry.add_reward_function(file, name, FunctionReward)
    made = Rewards(registry, [RewardEntry(name="a"), RewardEntry(name="b")], Base())
    assert {n: v.tolist() for n, v in scored(made, n=1).components.items()} == {"a": [1.0], "b": [2.0]}
    made.close()


@pytest.mark.parametrize("name", ["my-rewards.py", "rewards.v2.py", "random.py", "json.py"])
def test_a_file_may_be_called_anything(offered, name):
    assert scored(offered(LENGTHS, name=name), completions=["ab"]).scores.tolist() == [2.0]


# --- what a file does to its process ---

HARMLESS = {
    "arguments": "import argparse\nargparse.ArgumentParser().parse_args()\n",
    "torch": "import torch\ntorch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)\n"
    "torch.manual_seed(0)\ntorch.set_num_threads(7)\n",
    "folder": "import os, tempfile\nos.chdir(tempfile.gettempdir())\n",
    "seeds": "import random\nrandom.seed(0)\n",
    "output": "import sys\nsys.stdout.close()\nsys.stdin.close()\n",
    "signals": "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n",
    "script": "def main(): raise SystemExit(3)\nif __name__ == '__main__': main()\n",
    "fork": "import os\nif os.fork() == 0: raise SystemExit\nos.wait()\n",
    "pool": "import concurrent.futures as futures, multiprocessing\n",
}
CALLS = {
    "fork": "def f(completions, **_):\n"
    "    if os.fork() == 0: raise SystemExit\n    os.wait()\n    return [float(len(c)) for c in completions]\n",
    "pool": "def size(text): return float(len(text))\n"
    "def f(completions, **_):\n"
    "    with futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:\n"
    "        return list(pool.map(size, completions))\n",
    "folder": "def f(completions, **_):\n    os.chdir('/')\n    return [float(len(c)) for c in completions]\n",
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_a_file_does_to_its_process_does_no_harm(offered, what):
    before = (os.getcwd(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    drawn, arguments = torch.get_rng_state(), list(sys.argv)
    made = offered(HARMLESS[what] + CALLS.get(what, LENGTHS))
    for _ in range(2):
        assert scored(made, completions=["a", "bcd"]).scores.tolist() == [1.0, 3.0]
    after = (os.getcwd(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    assert after == before and bool((torch.get_rng_state() == drawn).all()) and sys.argv == arguments


def test_an_async_function_of_a_file_runs_in_its_process_too(offered):
    made = offered(
        "import asyncio, os\nasync def f(completions, log_metric, **_):\n"
        "    await asyncio.sleep(0)\n    log_metric('pid', os.getpid())\n    return [1.0] * len(completions)\n"
    )
    out = scored(made)
    assert out.scores.tolist() == [1.0] * 3 and out.metrics["rewards/f/pid"] != os.getpid()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_at_all\n", r"ModuleNotFoundError: No module named 'nowhere_at_all' \(mine\.py:1\)"),
        ("\nraise ValueError('a\\nb')\n", r"ValueError: a b \(mine\.py:2\)"),
        ("def f(:\n", "SyntaxError: invalid syntax"),
        ("import sys\nsys.exit()\n", r"SystemExit \(mine\.py:2\)"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
        (
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('x')\np.parse_args()\n",
            "SystemExit: 2",
        ),
        ("import os\nos._exit(0)\n", "ended its process with status 0"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "ended its process with status -9"),
    ],
)
def test_an_import_that_fails_names_the_file_and_the_function(offered, text, message):
    with pytest.raises(PluginError, match=rf"--reward .*mine\.py:f: importing .*mine\.py .*{message}"):
        offered(text + LENGTHS)


def test_an_import_that_hangs_is_ended(offered, monkeypatch):
    monkeypatch.setattr(process, "START_LIMIT", 2.0)
    with pytest.raises(PluginError, match=r"--reward .*mine\.py:f: importing .* took longer than 2 s"):
        offered("import time\ntime.sleep(3600)\n" + LENGTHS)


def test_an_import_that_works_once_is_told_when_it_fails(offered, tmp_path):
    made = offered(LENGTHS)
    (tmp_path / "mine.py").write_text("1 / 0\n")
    with pytest.raises(RewardError, match=r"reward f .*importing .*mine\.py raised ZeroDivisionError"):
        scored(made)


@pytest.mark.parametrize("status", [0, 3])
def test_a_call_that_ends_the_process_is_no_success(offered, status):
    made = offered(f"import os\ndef f(**_): os._exit({status})\n")
    with pytest.raises(RewardError, match=f"lost its worker process, which ended with status {status}"):
        scored(made)


def test_a_gigabyte_of_output_is_cut(offered, capfd):
    prints = "    for _ in range(64): print('x' * 2**20)\n"
    made = offered(f"def f(completions, **_):\n{prints}    return [1.0] * len(completions)\n")
    assert scored(made).scores.tolist() == [1.0] * 3
    made.close()
    err = capfd.readouterr().err
    assert "f printed more than 64 kB at once; the rest is left out." in err and len(err) < 2**17


def test_what_a_reward_starts_in_another_session_ends_with_it(offered, recwarn):
    mark = f"rlhf-peft-{os.getpid()}-{time.monotonic_ns()}"
    made = offered(
        "import subprocess, sys\nSLEEP = 'import time; time.sleep(600)'\n"
        f"COMMAND = [sys.executable, '-c', SLEEP, '{mark}']\n"
        "def f(completions, **_):\n    subprocess.Popen(COMMAND, start_new_session=True)\n"
        "    return [1.0] * len(completions)\n"
    )
    scored(made)
    while not alive(mark):  # its command line comes a moment after it
        time.sleep(0.01)
    made.close()
    assert not alive(mark)


def test_a_worker_tells_what_a_file_holds(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from math import floor\nX = 3\ndef short(): pass\nasync def long(): pass\n")
    assert inspect_function(Target("long", file=str(file))) == {
        "ready": True,
        "callable": True,
        "is_async": True,
    }
    assert not inspect_function(Target("X", file=str(file)))["callable"]
    with pytest.raises(NotImported) as caught:
        inspect_function(Target("shrt", file=str(file)))
    assert caught.value.functions == ["long", "short"]


def test_a_class_of_a_plugin_in_a_file_runs_beside_its_modules(tmp_path):
    (tmp_path / "values.py").write_text("VALUE = 2.5\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "import os, torch\nfrom rlhf_peft.plugin import Options, Scores, hookimpl\nimport values\n"
        "class Mine:\n    class Options(Options): pass\n    roles, timeout = (), None\n"
        "    def __init__(self, options): pass\n"
        "    def score(self, batch):\n"
        "        return Scores(row=torch.full((len(batch),), values.VALUE), metrics={'pid': os.getpid()})\n"
        "@hookimpl\ndef rlhf_peft_register_rewards(register): register('mine', Mine)\n"
    )
    registry = Registry()
    registry.add_file(file)
    made = Rewards(registry, [RewardEntry(name="mine")], Base())
    out = scored(made)
    made.close()
    assert out.scores.tolist() == [2.5] * 3 and out.metrics["rewards/mine/pid"] != os.getpid()
    assert Path(file).exists()
