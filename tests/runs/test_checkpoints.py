"""Checkpoints are whole or absent."""

import os

import pytest

from rlhf_peft.errors import CheckpointError, RunFolderError
from rlhf_peft.runs import Checkpoints


@pytest.fixture
def there(tmp_path):
    return Checkpoints(tmp_path)


def fill(text="x"):
    def write(folder):
        (folder / "part").mkdir()
        (folder / "part" / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text * 2)

    return write


def test_what_is_saved_is_found(there):
    there.save("rl-1", {"step": 1}, fill())
    there.save("rl-2", {"step": 2}, fill("y"))
    checkpoint, wrong = there.newest()
    assert (checkpoint.name, checkpoint.info["step"], wrong) == ("rl-2", 2, [])
    assert (checkpoint.path / "part" / "a.txt").read_text() == "y"
    assert there.names() == ["rl-1", "rl-2"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "b.txt").write_text("xy"), "b.txt is damaged"),
        (lambda path: (path / "b.txt").write_text(""), "b.txt is damaged"),
        (lambda path: (path / "part" / "a.txt").unlink(), "part/a.txt is missing"),
    ],
)
def test_a_damaged_one_gives_way_to_the_one_before(there, damage, message):
    there.save("rl-1", {}, fill())
    damage(there.save("rl-2", {}, fill()).path)
    checkpoint, wrong = there.newest()
    assert checkpoint.name == "rl-1" and message in wrong[0]


def test_one_whose_stage_cannot_begin_gives_way(there):
    there.save("sft-done", {"begun": None}, fill())
    there.save("rl-done", {"begun": None}, fill())
    there.save("dpo-3", {"begun": "rl-done"}, fill())
    (there.folder / "rl-done" / "b.txt").write_text("other")
    checkpoint, wrong = there.newest()
    assert checkpoint.name == "sft-done" and len(wrong) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', '{"format": "rlhf-peft checkpoint"}'])
def test_one_that_is_not_ours_is_none(there, text):
    path = there.save("rl-1", {}, fill()).path
    (path / "checkpoint.json").write_text(text)
    checkpoint, wrong = there.newest()
    assert checkpoint is None and len(wrong) == 1 and "checkpoint.json is damaged" in wrong[0]
    with pytest.raises(RunFolderError, match="not a checkpoint, or one that is damaged"):
        there.read("rl-1")


def test_a_save_that_fails_leaves_nothing_and_takes_nothing(there):
    there.save("rl-1", {}, fill())

    def full(folder):
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"rl-2: cannot be written: .*No space left"):
        there.save("rl-2", {}, full)
    assert sorted(os.listdir(there.folder)) == ["rl-1"]


def test_a_save_is_interrupted(there):
    def interrupted(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        there.save("rl-1", {}, interrupted)
    assert os.listdir(there.folder) == []


def test_what_came_after_is_forgotten(there):
    first = there.save("rl-1", {}, fill())
    there.save("rl-2", {}, fill())
    (there.folder / ".rl-3.77.tmp").mkdir()
    there.forget_after(first.info["number"])
    assert sorted(os.listdir(there.folder)) == ["rl-1"]


def test_those_of_a_stage_are_removed_by_name(there):
    for step in range(3):
        there.save(f"rl-{step}", {"stage": "rl"}, fill())
    there.save("sft-done", {"stage": "sft"}, fill())
    there.remove(["rl-1"])
    assert there.names() == ["rl-0", "rl-2", "sft-done"] and there.names("rl") == ["rl-0", "rl-2"]


def test_a_step_that_is_saved_again_replaces_itself(there):
    there.save("rl-1", {}, fill("x"))
    there.save("rl-1", {}, fill("z"))
    assert (there.folder / "rl-1" / "b.txt").read_text() == "zz"
    assert there.newest()[0].info["number"] == 2
