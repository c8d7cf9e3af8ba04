"""Code of others in the run's own process."""

import os
import random
import sys

import numpy as np
import pytest
import torch

from rlhf_peft import foreign
from rlhf_peft.errors import PluginError, RewardError
from rlhf_peft.kit.functions import FunctionReward
from rlhf_peft.recipe.schema import RewardEntry
from rlhf_peft.registry import Registry
from rlhf_peft.stages.rl.rewards.rewards import Rewards
from tests.stages.rl.rewards.reward_doubles import Base, scored

PLUGIN = (
    "from rlhf_peft.plugin import Options, hookimpl\n"
    "class Mine:\n    class Options(Options): pass\n    roles, timeout = (), None\n"
    "@hookimpl\ndef rlhf_peft_register_rewards(register): register('mine', Mine)\n"
)
CHANGES = (
    "import os, random, sys, torch, numpy as np\nos.chdir('/')\ntorch.set_grad_enabled(False)\n"
    "torch.set_default_dtype(torch.float64)\ntorch.set_num_threads(torch.get_num_threads() + 1)\n"
    "torch.set_default_device('meta')\n"
)
SEEDS = "torch.manual_seed(3)\nrandom.seed(3)\nnp.random.seed(3)\n"


def state():
    """What code of others may change."""
    return (
        os.getcwd(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        sys.argv,
        os._exit,
    )


def drawn():
    return (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def here(tmp_path, text, **keys):
    """The function `f` of a file as a reward in the run's process."""
    file = tmp_path / "mine.py"
    file.write_text(text)
    registry = Registry()
    registry.add_reward_function(file, "f", FunctionReward)
    return Rewards(registry, [RewardEntry(name="f", in_process=True, **keys)], Base())


def indented(text):
    return "".join(f"    {line}\n" for line in text.splitlines())


def test_a_plugin_in_a_file_leaves_the_process_as_it_was(tmp_path):
    before, numbers = state(), drawn()
    file = tmp_path / "mine.py"
    file.write_text(CHANGES + SEEDS + "import argparse\nargparse.ArgumentParser().parse_args()\n" + PLUGIN)
    Registry().add_file(file)
    assert state() == before and drawn() == numbers


def test_a_reward_in_the_runs_process_leaves_it_as_it_was(tmp_path):
    before = state()
    call = "def f(completions, **_):\n" + indented(CHANGES) + "    return [1.0] * len(completions)\n"
    made = here(tmp_path, call)
    assert scored(made).scores.tolist() == [1.0] * 3
    assert state() == before


def test_a_reward_in_the_runs_process_draws_new_numbers_in_each_call(tmp_path):
    made = here(tmp_path, "import torch\ndef f(completions, **_): return torch.rand(len(completions))\n")
    assert scored(made).scores.tolist() != scored(made).scores.tolist()


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("status", [0, 3])
def test_a_reward_cannot_end_the_run(tmp_path, kind, status):
    made = here(tmp_path, f"import os\n{kind} f(**_): os._exit({status})\n")
    with pytest.raises(
        RewardError, match=rf"reward f .*called os\._exit\({status}\), which would end the run"
    ):
        scored(made)
    made.close()


def test_an_async_reward_that_leaves_the_folder(tmp_path):
    before = os.getcwd()
    made = here(
        tmp_path,
        "import os\nasync def f(completions, **_):\n    os.chdir('/')\n    return [1.0] * len(completions)\n",
    )
    scored(made)
    made.close()
    assert os.getcwd() == before


def test_a_child_that_a_reward_forks_may_end(tmp_path):
    text = (
        "import os\ndef f(completions, **_):\n    child = os.fork()\n    if child == 0: os._exit(7)\n"
        "    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])] * len(completions)\n"
    )
    assert scored(here(tmp_path, text)).scores.tolist() == [7.0] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os\nos._exit(0)\n", r"called os\._exit\(0\)"),
        ("import sys\nsys.exit()\n", "SystemExit"),
        ("import time\ntime.sleep(3600)\n", "TimeoutError: it took longer than 0.5 s"),
        ("while True: pass\n", "TimeoutError: it took longer than 0.5 s"),
    ],
)
def test_a_plugin_that_does_not_come_back_is_named(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(foreign, "IMPORT_LIMIT", 0.5)
    file = tmp_path / "mine.py"
    file.write_text(text + PLUGIN)
    with pytest.raises(PluginError, match=rf"--plugin .*mine\.py: its import failed: .*{message}"):
        Registry().add_file(file)


def test_plugins_in_files_have_their_own_modules_beside_them(tmp_path):
    registry = Registry()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "neighbours.py").write_text(f"NAME = 'from-{name}'\n")
        file = tmp_path / name / f"{name}.py"
        file.write_text("import neighbours\n" + PLUGIN.replace("'mine'", "neighbours.NAME"))
        registry.add_file(file)
    assert registry.names("rewards") == ["from-a", "from-b"]


def test_an_observer_leaves_the_process_as_it_was(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from rlhf_peft.plugin import hookimpl\n@hookimpl\ndef rlhf_peft_step_end(step):\n"
        + indented(CHANGES)
    )
    registry, before = Registry(), state()
    registry.add_file(file)
    registry.broadcast("rlhf_peft_step_end", run=None, stage="rl", step=1, metrics={})
    assert state() == before
