"""The terminal is the program's own: what other libraries say stands in run.log, and `--verbose` shows it."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest

FOREIGN = re.compile(r"warning|deprecat|site-packages|it/s|\d%\||traceback", re.IGNORECASE)
TINY = {"name": "tiny", "size": 16}
SHORT = {"batch_size": 4, "max_steps": 1}
PROMPTS = {**TINY, "part": "prompts"}
PAIRS = {**TINY, "part": "preferences"}
SAMPLERS = {
    "cached": {},
    "hf": {},
    "continuous": {},
    "best_of_n": {"n": 2, "of": {"name": "cached", "max_new_tokens": 6}},
}

THIRD_PARTY = """
import logging, warnings

handler = logging.StreamHandler()
logger = logging.getLogger("third_party.deep")
logger.addHandler(handler)
logger.propagate = False

def old():
    warnings.warn("old() goes in 2.0", FutureWarning, stacklevel=2)
    warnings.warn("old() is odd", UserWarning)
    logger.warning("the log of a library, key hf_abcdefghijklmnopqrstuvwx")
"""

PLUGIN = """
import warnings
import torch
import third_party
from rlhf_peft.plugin import Options, Scores, hookimpl

class Told:
    Options = Options
    roles, scope, timeout = (), "row", None
    def __init__(self, options): pass
    async def score(self, batch):
        third_party.old()
        warnings.warn("a word of the user's own", UserWarning)
        return Scores(row=torch.zeros(len(batch.prompts)))

@hookimpl
def rlhf_peft_register_rewards(register):
    register("told", Told)
"""


def recipe(folder, stages):
    path = folder / "r.yaml"
    made = {"version": 1, "name": "r", "output_dir": str(folder / "runs"), "device": "cpu", "stages": stages}
    path.write_text(json.dumps({**made, "model": {"path": "builtin:tiny", "max_length": 64}}))
    return path


def rl(name="rl", rewards=({"name": "tiny-gold"},), **changes):
    return {
        "stage": "rl",
        "name": name,
        "dataset": PROMPTS,
        "algorithm": {"name": "grpo", "num_generations": 2},
        "sampler": {"name": "cached", "max_new_tokens": 6},
        "rewards": list(rewards),
        "prompts_per_step": 4,
        "max_steps": 1,
        "eval": {"dataset": {**PROMPTS, "questions": "test", "size": 4}},
        **changes,
    }


@pytest.fixture
def environment(monkeypatch):
    """A user's: the hub is not switched off, no warning is let through, and there is one thread."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def program(*arguments, told="", cwd=None):
    command = [sys.executable, "-m", "rlhf_peft", *map(str, arguments)]
    done = subprocess.run(command, input=told, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def test_every_stage_sampler_and_verb(environment, tmp_path):
    stages = [
        {"stage": "sft", "dataset": {**TINY, "part": "demonstrations"}, **SHORT},
        *({"stage": "preference", "name": m, "method": m, "dataset": PAIRS, **SHORT} for m in ("dpo", "kto")),
        {"stage": "reward_model", "dataset": PAIRS, **SHORT},
        rl("ppo", [{"name": "learned"}], algorithm={"name": "ppo", "num_minibatches": 1}),
    ]
    for name, options in SAMPLERS.items():
        short = {} if name == "best_of_n" else {"max_new_tokens": 6}
        method = "rejection_sampling" if name == "best_of_n" else "grpo"
        algorithm = {"name": method, **({} if name == "best_of_n" else {"num_generations": 2})}
        stages.append(rl(name, algorithm=algorithm, sampler={"name": name, **short, **options}))
    run = tmp_path / "runs" / "r"
    every = [
        program("run", recipe(tmp_path, stages)),
        program("eval", run, "--size", 4),
        program("chat", run, told="Hello\n"),
        program("export", run, "--to", "peft", "-o", tmp_path / "peft"),
        program("export", run, "--to", "ollama", "-o", tmp_path / "ollama"),
        program("export", run, "--role", "reward-0", "--to", "merged", "-o", tmp_path / "merged"),
    ]
    for done in every:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if FOREIGN.search(line)]
        assert not lines, done.args


@pytest.mark.parametrize("arguments", [(), ("-q",)], ids=["bar", "quiet"])
def test_on_a_terminal(environment, tmp_path, arguments):
    path = recipe(tmp_path, [{"stage": "sft", "dataset": {**TINY, "part": "demonstrations"}, **SHORT}, rl()])
    main, side = pty.openpty()
    command = [sys.executable, "-m", "rlhf_peft", "run", str(path), *arguments]
    with subprocess.Popen(command, stdout=side, stderr=side, stdin=side) as process:
        os.close(side)
        shown = b""
        while True:
            try:
                shown += (part := os.read(main, 65536))
            except OSError:  # the other side is closed
                break
            if not part:
                break
    os.close(main)
    assert process.returncode == 0 and b"runs/r" in shown
    assert not FOREIGN.search(shown.decode(errors="replace"))


@pytest.fixture
def noisy(environment, tmp_path, monkeypatch):
    """A run whose reward makes a library say this and that; gives the arguments that run it."""
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "third_party.py").write_text(THIRD_PARTY)
    (tmp_path / "told.py").write_text(PLUGIN)
    monkeypatch.setenv("PYTHONPATH", str(packages))
    return ["run", recipe(tmp_path, [rl(rewards=[{"name": "told"}])]), "--plugin", tmp_path / "told.py"]


SAID = ["FutureWarning: old() goes in 2.0", "UserWarning: old() is odd", "the log of a library, key hf_***"]


def test_what_libraries_say_is_in_the_log(noisy, tmp_path):
    done = program(*noisy)
    shown = done.stdout + done.stderr
    log = (tmp_path / "runs" / "r" / "run.log").read_text()
    assert all(line in log and line not in shown for line in SAID[1:])
    # What is said of the user's own line, or by it, is the user's to see.
    assert all(text in log and text in shown for text in (SAID[0], "a word of the user's own"))
    assert log.count("old() is odd") == 1 and "third_party.py:11: UserWarning" in log


def test_verbose_shows_it(noisy):
    arguments = list(noisy)
    for where in (["--verbose", *arguments], [*arguments, "--overwrite", "--verbose"]):
        done = program(*where)
        assert all(text in done.stderr for text in SAID)


def test_an_earlier_log_goes_with_its_run_and_a_resumed_one_is_added_to(noisy, tmp_path):
    program(*noisy)
    log = tmp_path / "runs" / "r" / "run.log"
    log.write_text("an earlier line\n")
    program(*noisy, "--overwrite")
    assert "an earlier line" not in log.read_text() and "old() is odd" in log.read_text()
