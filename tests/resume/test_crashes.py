"""A run that is killed, or whose disk is full or damaged, loses nothing that was written down, and ends the same."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from rlhf_peft.errors import CheckpointError

from ..children import fork, in_child
from .support import Dies, ended, pipeline, run, same

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, interrupted, whole, caplog):
    recipe = interrupted(15)
    newest = tmp_path / "run" / "checkpoints" / "rl-3"
    file = newest / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    run(recipe, resume=True)
    assert "rl-3: state.safetensors is damaged" in caplog.text
    same(ended(tmp_path / "run"), whole[0])


def killed_after(recipe, seconds: float) -> bool:
    """Go on with a run in a process that is killed after so many seconds; whether it ended before."""
    child = fork()
    if child == 0:
        code = 1
        try:
            run(recipe, resume=True)
            code = 0
        finally:
            os._exit(code)
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def killed_at(recipe, touch: int) -> bool:
    """Go on with a run in a process that dies at its n-th touch of a file of the run; whether it ended before."""

    def work():
        Dies(recipe.run_folder, touch)
        run(recipe, resume=True)

    code = in_child(work)
    assert code in (0, -signal.SIGKILL)
    return code == 0


def kill(folder: Path, expected, kills: int, seed: int) -> int:
    """Kill a run again and again, half of the times inside of a save, and finish it; returns how often it was killed.

    A run that ends before all kills is begun again.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: float(torch.rand((), generator=generator))  # noqa: E731
    recipe, done = pipeline(folder), 0
    while done < kills:
        finished = (
            killed_at(recipe, 1 + int(150 * draw())) if done % 2 else killed_after(recipe, 0.3 + 2.0 * draw())
        )
        if finished:
            same(ended(folder / "run"), expected)
            shutil.rmtree(folder / "run")
        else:
            done += 1
    assert in_child(lambda: run(recipe, resume=True)) == 0
    same(ended(folder / "run"), expected)
    return done


def test_killed_at_random_moments(tmp_path, whole):
    assert kill(tmp_path, whole[0], 4, seed=0) == 4


@pytest.mark.slow
def test_killed_thirty_times(tmp_path, whole):
    assert kill(tmp_path, whole[0], 30, seed=1) == 30


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_three_hundred_times(tmp_path, whole, seed):
    assert kill(tmp_path, whole[0], 30, seed=100 + seed) == 30


@pytest.mark.slow
@pytest.mark.parametrize("touch", [60, 62, *range(1, 140, 3)])
def test_killed_inside_a_save(tmp_path, whole, touch):
    """One touch of a file after the other, in the middle of the run."""
    recipe = pipeline(tmp_path)
    assert not killed_at(recipe, touch)
    assert in_child(lambda: run(recipe, resume=True)) == 0
    same(ended(tmp_path / "run"), whole[0])
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, whole, monkeypatch):
    from rlhf_peft.session import snapshots

    recipe = pipeline(tmp_path)
    original, left = snapshots.save_file, [9]

    def full(*arguments, **named):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return original(*arguments, **named)

    monkeypatch.setattr(snapshots, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        run(recipe)
    message = " ".join([str(caught.value), *caught.value.__notes__])
    assert "is safe" in message and message.count("cannot be written") == 1
    monkeypatch.undo()
    run(recipe, resume=True)
    same(ended(tmp_path / "run"), whole[0])


@pytest.mark.slow
def test_a_disk_that_takes_no_more(tmp_path, whole):
    """The system itself refuses: no file can grow over a size that is enough until RL keeps two optimizer states."""
    import resource

    recipe, output = pipeline(tmp_path), tmp_path / "told"
    most = 3 * (whole[2] / "adapters" / "policy" / "adapter_model.safetensors").stat().st_size

    def work():
        heard = os.open(output, os.O_CREAT | os.O_WRONLY)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            run(recipe)
        except CheckpointError as error:
            os.write(heard, " ".join([str(error), *error.__notes__]).encode())
            os._exit(error.exit_code)

    assert in_child(work) == 1
    assert "checkpoints/rl-1: cannot be written" in output.read_text()
    assert "Checkpoint reward_model-done is safe" in output.read_text()
    assert output.read_text().count("File too large") == 1
    assert in_child(lambda: run(recipe, resume=True)) == 0
    same(ended(tmp_path / "run"), whole[0])
