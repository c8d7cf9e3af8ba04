"""A run is copied only when it is saved, and a signal waits until it can be."""

import os
import signal
from contextlib import contextmanager
from itertools import count

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

from rlhf_peft.session.interrupts import Interrupts
from rlhf_peft.session.snapshots import Snapshot
from rlhf_peft.stages.rl.evaluate import Evaluator

from .support import ended, pipeline, preferences, run, same


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C interrupts, also where the suite runs in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def checkpoints(folder):
    return {path.name for path in (folder / "run" / "checkpoints").iterdir()}


def test_weights_are_copied_when_a_checkpoint_is_written_and_at_no_other_update(tmp_path, monkeypatch):
    copied, copy = [], Snapshot.copy

    def counted(snapshot, base):
        copied.append(snapshot.name)
        return copy(snapshot, base)

    monkeypatch.setattr(Snapshot, "copy", counted)
    seldom = {"checkpoint": {"every": 3, "keep": 9}}
    run(pipeline(tmp_path, sft=seldom, reward_model=seldom, rl=seldom))
    # SFT can be done again from its beginning, with fewer rows in a forward. The last of 2 x 3 updates of the two
    # reward models, and the first one's last, are followed by their normalisation.
    assert copied == ["sft-0", "sft-3", "sft-done", "reward_model-done", "rl-3", "rl-done"]


@contextmanager
def after_step(at, act):
    """Do something when the n-th optimizer step of this process has changed the weights."""
    steps = count(1)

    def hook(*_):
        if next(steps) == at:
            act()

    handle = register_optimizer_step_post_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


# Optimizer steps: SFT 1 to 4, two rewards of 3.
@pytest.mark.parametrize(
    ("at", "name"),
    [
        (2, "sft-2"),
        pytest.param(6, "reward_model-2", marks=pytest.mark.slow),
        pytest.param(8, "reward_model-4", marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_an_update_stops_the_run_after_it(tmp_path, whole, caplog, at, name):
    seldom = {"checkpoint": {"every": None}}
    recipe = pipeline(tmp_path, sft=seldom, reward_model=seldom, rl=seldom)
    before = signal.getsignal(signal.SIGINT)
    with after_step(at, interrupt), pytest.raises(KeyboardInterrupt) as caught:
        run(recipe)
    assert "SIGINT: the run stops after this update" in caplog.text
    assert f"Checkpoint {name} is safe" in caught.value.__notes__[0] and name in checkpoints(tmp_path)
    assert signal.getsignal(signal.SIGINT) == before
    run(recipe, resume=True)
    same(ended(tmp_path / "run"), whole[0])


@pytest.fixture
def before_rl(interrupted, tmp_path):
    """A run that has done all stages but RL, whose four updates have four optimizer steps each."""
    interrupted(12)

    def recipe(**settings):
        return pipeline(tmp_path, rl={"checkpoint": {"every": None, **settings}})

    return recipe


@pytest.mark.parametrize(
    ("at", "name"), [(3, "rl-1"), (6, "rl-2"), pytest.param(16, "rl-4", marks=pytest.mark.slow)]
)
def test_a_signal_in_an_update_of_rl_stops_the_run_after_it(tmp_path, whole, before_rl, at, name):
    with after_step(at, interrupt), pytest.raises(KeyboardInterrupt) as caught:
        run(before_rl(), resume=True)
    assert f"Checkpoint {name} is safe" in caught.value.__notes__[0] and name in checkpoints(tmp_path)
    run(before_rl(), resume=True)
    same(ended(tmp_path / "run"), whole[0])


def test_a_second_signal_stops_the_run_in_the_update(tmp_path, whole, before_rl):
    with after_step(6, lambda: (interrupt(), interrupt())), pytest.raises(KeyboardInterrupt) as caught:
        run(before_rl(every=1), resume=True)
    assert "Checkpoint rl-1 is safe" in caught.value.__notes__[0]
    run(before_rl(), resume=True)
    same(ended(tmp_path / "run"), whole[0])


@pytest.mark.parametrize("step", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_an_evaluation_is_interrupted_at_once_and_done_again(tmp_path, whole, before_rl, monkeypatch, step):
    """The update before it is not lost."""
    evaluate = Evaluator.run

    def interrupted(evaluator, at):
        if at == step:
            interrupt()
        return evaluate(evaluator, at)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(Evaluator, "run", interrupted)
        run(before_rl(), resume=True)
    assert f"Checkpoint rl-{step} is safe" in caught.value.__notes__[0]
    run(before_rl(), resume=True)
    same(ended(tmp_path / "run"), whole[0])


def test_an_error_in_an_update_leaves_the_last_checkpoint(tmp_path, whole, before_rl):
    def fail():
        raise RuntimeError("out of luck")

    with after_step(11, fail), pytest.raises(RuntimeError, match="luck") as caught:
        run(before_rl(every=2), resume=True)
    assert "Checkpoint rl-2 is safe" in caught.value.__notes__[0]
    run(before_rl(), resume=True)
    same(ended(tmp_path / "run"), whole[0])


@pytest.fixture(scope="module")
def plain_dpo(tmp_path_factory):
    """What a run of SFT and DPO leaves behind."""
    folder = tmp_path_factory.mktemp("plain")
    run(preferences(folder, "dpo", dropout=0.0))
    return ended(folder / "run")


@pytest.mark.parametrize(("at", "every"), [(3, None), (5, 2)])
def test_an_update_that_fails_for_memory_in_its_step_is_done_again(tmp_path, plain_dpo, at, every, caplog):
    """The optimizer has changed weights by then: its stage goes back to its checkpoint, else to its beginning."""

    def fail():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    recipe = preferences(tmp_path, "dpo", every, dropout=0.0)
    with after_step(at, fail):
        run(recipe)
    assert "out of memory. From here on 1 rows" in caplog.text
    ours, plain = ended(tmp_path / "run"), plain_dpo
    assert list(ours) == list(plain)
    updates = [key for key in plain if key.startswith("preference ") and "loss" in plain[key]]
    assert len(updates) == 5
    for key in updates:  # The sum over micro-batches is another one in its last digits.
        assert ours[key]["loss"] == pytest.approx(plain[key]["loss"], rel=1e-4), key


class Raised(Exception):
    pass


def test_signals_pass_at_once_unless_they_are_held():
    def handler(number, frame):
        raise Raised(number)

    before, interrupts = signal.signal(signal.SIGTERM, handler), Interrupts()
    try:
        with interrupts.installed():
            with pytest.raises(Raised):
                os.kill(os.getpid(), signal.SIGTERM)
            interrupts.hold()
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Raised):
                interrupts.release()
            interrupts.release()
            interrupts.hold()
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Raised):
                os.kill(os.getpid(), signal.SIGTERM)
            interrupts.release()
        assert signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGTERM, before)
