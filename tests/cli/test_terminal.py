"""The terminal is the program's own: what other libraries say stands in run.log, and `--verbose` shows it."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from rlhf_peft import library_messages
from rlhf_peft.cli import execute

from ..ready_program import ROOT, ready_program
from ..small_model import one_layer

ENDLESS = "without an end. If the rows that the policy was trained on do end"
"""Our own warning, and true: six tokens are too few for an end."""
FOREIGN = re.compile(
    r"warning|deprecat|site-packages|it/s|\d%\||traceback|retry|failed to|load report|initialized|kernels",
    re.IGNORECASE,
)
PROGRESS = re.compile(r"[\w-]+: \d+ updates|  [\w-]+ \d+/\d+  .*")
"""What a run says on stderr where there is no terminal."""
TINY = {"name": "tiny", "size": 16}
SHORT = {"batch_size": 4, "max_steps": 1}
PROMPTS = {**TINY, "part": "prompts"}
PAIRS = {**TINY, "part": "preferences"}
SAMPLERS = {
    "cached": {},
    "hf": {},
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
import logging, socket, warnings
import torch
import third_party
from rlhf_peft.plugin import Options, Scores, hookimpl

log = logging.getLogger("mine")
log.addHandler(logging.FileHandler("mine.log"))
held = socket.socket()  # never closed

class Told:
    Options = Options
    roles, timeout = (), None
    def __init__(self, options): pass
    async def score(self, batch):
        third_party.old()
        warnings.warn("a word of the user's own", UserWarning)
        log.error("scored")
        return Scores(row=torch.zeros(len(batch.prompts)))

@hookimpl
def rlhf_peft_register_rewards(register):
    register("told", Told)
"""

FUNCTION = """
import third_party

def worked(completions, **columns):
    third_party.old()
    return [0.0] * len(completions)
"""


def recipe(folder, stages):
    path = folder / "r.yaml"
    made = {"version": 1, "name": "r", "output_dir": str(folder / "runs"), "device": "cpu", "stages": stages}
    path.write_text(json.dumps({**made, "model": {"path": one_layer(), "max_length": 64}}))
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
    """A user's: the hub is not switched off and does not answer, no warning is let through, and there is one thread."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def new_process(*arguments):
    """Run the program in a new process, in which its libraries are imported."""
    command = [sys.executable, "-m", "rlhf_peft", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
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
    done = new_process("run", recipe(tmp_path, stages))
    lines = [line for line in done.stderr.splitlines() if not PROGRESS.fullmatch(line)]
    assert [line for line in lines if ENDLESS not in line] == []
    shown = ""
    for verb in (
        ["eval", run, "--size", 4],
        ["export", run, "--to", "peft", "-o", tmp_path / "peft"],
        ["export", run, "--to", "ollama", "-o", tmp_path / "ollama"],
        ["export", run, "--role", "reward-0", "--to", "merged", "-o", tmp_path / "merged"],
        ["chat", run],
    ):
        done = ready_program().run(verb, input="Hello\n")
        assert done.returncode == 0, done.stderr
        shown += done.stdout + done.stderr
    lines = [line.rstrip() for line in shown.splitlines()]
    assert not [line for line in lines if FOREIGN.search(line)]
    assert "4 prompts" in lines and "next:" in lines


SHORTEST = [
    *(f"stages.{stage}.max_steps=1" for stage in ("sft", "reward_model", "rl")),
    *(f"stages.{stage}.eval.size=8" for stage in ("reward_model", "rl")),
    "stages.rl.prompts_per_step=4",
]


@pytest.mark.parametrize("quiet", [False, True], ids=["bar", "quiet"])
def test_on_a_terminal(environment, tmp_path, quiet):
    what = [recipe(tmp_path, [rl(eval={})]), "-q"] if quiet else ["quickstart", *SHORTEST]
    main, side = pty.openpty()
    arguments = ["run", *map(str, what), f"output_dir={tmp_path / 'runs'}"]
    if quiet:
        program = ready_program()
        program.start(arguments, [side] * 3)
        wait = program.wait
    else:
        command = [sys.executable, "-m", "rlhf_peft", *arguments]
        wait = subprocess.Popen(command, stdout=side, stderr=side, stdin=side).wait
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
    assert (wait(), b"/runs/" in shown) == (0, True), shown.decode(errors="replace")
    output = [line for line in shown.decode(errors="replace").splitlines() if ENDLESS not in line]
    assert not [line for line in output if FOREIGN.search(line)]


SAID = ["FutureWarning: old() goes in 2.0", "UserWarning: old() is odd", "the log of a library, key hf_***"]


@pytest.fixture
def noisy(environment, tmp_path, monkeypatch):
    """A run of two steps whose rewards, in this process and in a worker, make a library say this and that."""
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "third_party.py").write_text(THIRD_PARTY)
    (tmp_path / "told.py").write_text(PLUGIN)
    (tmp_path / "rewards.py").write_text(FUNCTION)
    monkeypatch.setenv("PYTHONPATH", f"{packages}{os.pathsep}{ROOT}")
    monkeypatch.chdir(tmp_path)
    rewards = [{"name": "told"}, {"name": "worked"}]
    path = recipe(tmp_path, [rl(rewards=rewards, max_steps=2, eval={})])
    return ["run", path, "--plugin", "told.py", "--reward", "rewards.py:worked"]


def test_what_libraries_say_is_in_the_log(noisy, tmp_path):
    done = new_process(*noisy, "--sweep", "seed=1,2")
    shown = done.stdout + done.stderr
    for run in sorted((tmp_path / "runs").glob("r-*/")):
        log = (run / "run.log").read_text()
        assert all(line in log and line not in shown for line in SAID[1:])
        # What is said of the user's own line, or by it, is the user's to see.
        assert all(text in log and text in shown for text in (SAID[0], "a word of the user's own"))
        # Once from this process, once from the worker.
        assert log.count("third_party.py:11: UserWarning: old() is odd") == 2
    assert len(list((tmp_path / "runs").glob("r-*/run.log"))) == 2
    assert (tmp_path / "mine.log").read_text() == "scored\n" * 4 and "ResourceWarning" not in shown


def test_verbose_shows_it_as_json_where_progress_is_json(noisy, tmp_path):
    done = ready_program().run([*noisy, "--verbose", "--json"])
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines() if "scored" not in line]
    texts = "\n".join(line.get("text", "") for line in events)
    assert all(text in texts for text in SAID)
    log = (tmp_path / "runs" / "r" / "run.log").read_text()
    assert all(line in log for line in SAID)


def test_a_log_tells_why_a_run_ended(noisy, tmp_path):
    fails = "if columns['trainer_state'].global_step > 0: raise ValueError('no more')"
    (tmp_path / "rewards.py").write_text(FUNCTION.replace("return", f"{fails}\n    return"))
    done = ready_program().run([*noisy, "stages.rl.max_steps=3"])
    assert done.returncode == 1 and "no more" in done.stderr
    log = (tmp_path / "runs" / "r" / "run.log").read_text()
    assert "failed: RewardError: " in log and "no more" in log


def test_verbose_stands_before_the_verb_too(monkeypatch, capsys):
    monkeypatch.setenv(library_messages.VERBOSE, "")
    monkeypatch.setattr(library_messages, "_messages", library_messages.Messages())
    library_messages._messages.add("as it is", "/x/site-packages/y.py")
    assert execute(["--verbose", "recipes", "list"]) == 0
    library_messages._messages.add("from a library", "/x/site-packages/y.py")
    err = capsys.readouterr().err
    assert "from a library" in err and "as it is" not in err and os.environ[library_messages.VERBOSE] == "1"
