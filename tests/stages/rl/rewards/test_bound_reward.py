"""Functions and plain rewards in processes of their own."""

import functools
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from rlhf_peft.errors import RewardError
from rlhf_peft.kit.functions import FunctionReward, target_of
from rlhf_peft.recipe.schema import RewardEntry
from rlhf_peft.registry import Registry
from rlhf_peft.stages.rl.rewards.rewards import Rewards
from tests.builtin.rewards.doubles import chats

from . import worker_functions as functions
from . import worker_rewards
from .reward_doubles import Base, begin, function, rewards, scored

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups")


def gone(pid):
    """Whether a process has ended, or is a zombie that waits for its parent."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def made():
    """Makes rewards and closes them."""
    out = []

    def make(entries, **given):
        out.append(rewards(entries, **given))
        return out[-1]

    yield make
    for each in out:
        each.close()


def test_a_function_runs_in_one_worker_that_lives_on(made, capfd):
    made = made({"f": {}}, f=function(functions.where))
    first, second = (scored(made, columns={"answer": ["x", "y", "z"]}) for _ in range(2))
    pid = first.metrics["rewards/f/pid"]
    assert pid != os.getpid() and pid == second.metrics["rewards/f/pid"]
    assert first.metrics["rewards/f/parent"] == os.getpid()
    assert first.metrics["rewards/f/step"] == 3  # the batch is for update 4: three came before it, as in TRL
    assert first.components["f"][[0, 2]].tolist() == [1.0, 0.5] and first.components["f"][1].isnan()
    assert first.extra == {"f/answer": ["x", "y", "z"]}
    made.close()
    assert gone(int(pid))
    out, err = capfd.readouterr()
    assert "this goes to stderr" in err and not out


def test_a_function_that_hangs_is_killed_with_what_it_started(made, tmp_path):
    note = str(tmp_path / "pids")
    made = made({"f": {"timeout": 1.0}}, f=function(functions.hangs))
    begun = time.monotonic()
    with pytest.raises(
        RewardError, match=r"took longer than 1 s at rl step 4. Its worker process was killed"
    ):
        scored(made, columns={"note": [note] * 3})
    assert time.monotonic() - begun < 20
    worker, child = map(int, Path(note).read_text().split())
    assert gone(worker) and gone(child)


def test_a_worker_that_dies_is_told_and_replaced(made, tmp_path):
    columns = {"note": [str(tmp_path / "been")] * 3}
    made = made({"f": {}}, f=function(functions.sometimes))
    with pytest.raises(RewardError, match="lost its worker process, which ended with status 3"):
        scored(made, columns=columns)
    assert scored(made, columns=columns).scores.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"raised ValueError: no luck \(worker_functions\.py:\d+\) at rl step 4"),
        ("exits", "raised SystemExit: bye"),
        ("miscounts", "gave 1 score for 3 completions at rl step 4"),
        ("not_a_number", "gave nan for row 1, which is not a finite number at rl step 4. None abstains"),
    ],
)
def test_failures_come_back_with_their_place(made, name, message):
    made = made({"f": {}}, f=function(getattr(functions, name)))
    for _ in range(2):
        with pytest.raises(RewardError, match=rf"reward f \(a-plugin 0\.3\.1\) {message}"):
            scored(made)


def test_rewards_run_while_the_model_computes(made):
    made = made({"f": {}, "g": {}}, f=function(functions.slow), g=function(functions.waits, "g"))
    scored(made)  # the worker starts
    begun = time.monotonic()
    pending = begin(made)
    assert time.monotonic() - begun < 0.3
    time.sleep(0.7)
    made.finish(pending)
    assert pending.batch.scores.tolist() == [3.0] * 3 and time.monotonic() - begun < 1.2


def test_cancelled_rewards_leave_no_process(made, tmp_path):
    note = str(tmp_path / "pids")
    made = made({"f": {}}, f=function(functions.hangs))
    begin(made, columns={"note": [note] * 3})
    while not (os.path.exists(note) and Path(note).read_text()):
        time.sleep(0.02)
    made.close()
    assert all(gone(int(pid)) for pid in Path(note).read_text().split())


def test_forgotten_rewards_leave_no_process():
    forgotten = rewards({"f": {}}, f=function(functions.where))
    pid = int(scored(forgotten).metrics["rewards/f/pid"])
    del forgotten
    import gc

    gc.collect()
    assert gone(pid)


def test_an_async_function_that_hangs_is_cancelled(made):
    with pytest.raises(RewardError, match=r"took longer than 0\.1 s"):
        scored(made({"f": {"timeout": 0.1}}, f=function(functions.waits_for_ever)))


def test_what_has_no_name_runs_here_with_a_note(made, caplog):
    import logging

    logging.getLogger("rlhf_peft").propagate = True
    with caplog.at_level("INFO", "rlhf_peft.rewards"):
        made = made({"f": {}}, f=function(functions.closure()))
    assert scored(made).metrics["rewards/f/pid"] == os.getpid()
    assert "reward f (a-plugin 0.3.1) cannot be imported by name" in caplog.text


def test_in_process_is_here_and_a_timeout_is_told_afterwards(made):
    out = scored(made({"f": {"in_process": True}}, f=function(functions.where)))
    assert out.metrics["rewards/f/pid"] == os.getpid()
    with pytest.raises(RewardError, match=r"took longer than 0\.1 s"):
        made_here = rewards({"f": {"in_process": True, "timeout": 0.1}}, f=function(functions.slow))
        scored(made_here)


def test_a_column_that_is_no_json_says_in_process(made):
    columns = {"image": [torch.zeros(1)] * 3}
    with pytest.raises(
        RewardError, match=r"column image .* holds a Tensor.*stages\.rl\.rewards\.f\.in_process=true"
    ):
        scored(made({"f": {}}, f=function(functions.where)), columns=columns)
    here = rewards({"f": {"in_process": True}}, f=function(functions.where))
    assert scored(here, columns=columns).scores[0] == 1.0


def test_a_plain_reward_is_rebuilt_in_a_worker(made):
    made = made({"p": {"factor": 2.0}}, p=worker_rewards.Plain)
    out = scored(made, group=[0, 1, 3])
    assert out.scores.tolist() == [0.0, 2.0, 6.0]
    assert out.token_scores.tolist() == [[0.0, 1.0, 1.0]] * 3
    assert out.metrics["rewards/p/pid"] != os.getpid() and out.extra == {"p/text": ["c0", "c1", "c2"]}
    here = scored(
        rewards({"p": {"factor": 2.0, "in_process": True}}, p=worker_rewards.Plain), group=[0, 1, 3]
    )
    assert here.metrics["rewards/p/drawn"] == pytest.approx(out.metrics["rewards/p/drawn"])


def test_a_function_of_a_file_runs_in_a_worker_without_torch(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import sys\nSEEN = []\n"
        "def light(completions, log_metric, **_):\n"
        "    SEEN.append(1)\n"
        "    log_metric('torch', 'torch' in sys.modules)\n"
        "    log_metric('calls', len(SEEN))\n"
        "    return [0.5] * len(completions)\n"
    )
    registry = Registry.load(no_plugins=True)
    registry.add_reward_function(file, "light", FunctionReward)
    made = Rewards(registry, [RewardEntry(name="light")], Base())
    scored(made)
    metrics = scored(made).metrics
    made.close()
    assert metrics == {"rewards/light/torch": 0.0, "rewards/light/calls": 2.0}


@pytest.mark.parametrize(
    ("name", "options", "completions", "columns", "expected"),
    [
        ("numeric_answer", {}, ["#### 4", "5"], {"answer": ["4", "4"]}, [1.0, 0.0]),
        ("regex", {"pattern": "a+"}, ["aa", "b"], {}, [1.0, 0.0]),
        ("length", {"max": 1}, ["aa", "b"], {}, [-1.0, -1.0]),
        ("exact_match", {}, ["aa", "b"], {"answer": ["AA", "c"]}, [1.0, 0.0]),
    ],
)
def test_built_in_rewards_by_their_names(name, options, completions, columns, expected):
    made = Rewards(Registry.load(no_plugins=True), [RewardEntry(name=name, timeout=60, **options)], Base())
    out = scored(made, completions=chats(*completions), columns=columns)
    made.close()
    assert out.scores.tolist() == expected


def test_a_pattern_that_never_ends_is_stopped():
    entry = RewardEntry(name="regex", pattern="(a+)+$", timeout=1.0)
    made = Rewards(Registry.load(no_plugins=True), [entry], Base())
    with pytest.raises(RewardError, match="took longer than 1 s"):
        scored(made, completions=["a" * 60 + "b"])
    made.close()


# --- targets ---


def test_targets():
    assert target_of(functions.slow).module == functions.__name__
    assert target_of(worker_rewards.Plain).qualname == "Plain"
    assert target_of(lambda: 1) is None and target_of(functions.closure()) is None
    bound = target_of(functools.partial(functions.scaled, factor=2.0))
    assert bound.qualname == "scaled" and bound.keywords == {"factor": 2.0}
    assert target_of(functools.partial(functions.scaled, factor=torch.ones(()))) is None
    assert target_of(functools.partial(functions.scaled, [1])) is None


def test_a_partial_of_an_importable_function_runs_in_a_worker(made):
    made = made({"f": {}}, f=function(functools.partial(functions.scaled, factor=2.0)))
    assert scored(made).scores.tolist() == [2.0] * 3
    assert made._bound[0].place == "worker"


# --- trl.rewards ---


def completions_for_trl():
    return chats(
        "<think>a</think> so \\boxed{\\frac{1}{3}}",
        "<think>b</think> \\boxed{2}",
        "no end \\boxed{\\frac{1}{3}}",
    )


def trl_functions():
    import trl.rewards as theirs

    yield theirs.think_format_reward, "worker", [1.0, 1.0, 0.0]
    yield theirs.get_soft_overlong_punishment(3, 2), "here", [-0.5, -0.5, -0.5]
    yield theirs.get_repetition_penalty_reward(1), "here", [0.0, 0.0, 0.0]
    yield theirs.accuracy_reward, "worker", [1.0, 0.0, 1.0]
    yield theirs.reasoning_accuracy_reward, "worker", [1.0, 0.0, 0.0]
    yield theirs.get_cosine_scaled_reward(max_len=4), "here", [0.75, -0.75, 0.75]


@pytest.mark.parametrize("number", range(6))
def test_trls_own_rewards_run_unchanged(made, number):
    f, place, expected = list(trl_functions())[number]
    if number >= 3:
        pytest.importorskip("math_verify")
    made = made({"f": {"timeout": 60}}, f=function(f))
    columns = {"solution": ["\\frac{1}{3}"] * 3}
    assert scored(made, completions=completions_for_trl(), columns=columns).scores.tolist() == pytest.approx(
        expected
    )
    assert made._bound[0].place == place
