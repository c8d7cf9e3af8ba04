"""Small files are read, and neither devices nor what is large."""

import os

import pytest

from rlhf_peft.bounded_read import TooLarge, read_small
from rlhf_peft.cli import execute


def test_a_file_of_any_size_up_to_the_limit(tmp_path):
    (tmp_path / "x").write_bytes(b"a" * 10)
    assert read_small(tmp_path / "x", 10) == b"a" * 10
    with pytest.raises(TooLarge, match="more than 9 bytes"):
        read_small(tmp_path / "x", 9)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", ["zero.yaml", "pipe.yaml"])
def test_devices_and_pipes_are_refused_at_once(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    os.symlink("/dev/zero", "zero.yaml")
    os.mkfifo("pipe.yaml")
    for command in (["validate", name], ["run", name], ["plan", name], ["recipes", "from-trl", name]):
        assert execute(command) == 2
        assert f"{name}: a device or a pipe, not a file" in capsys.readouterr().err


def test_what_is_read_counts_and_not_what_a_file_says_of_itself(tmp_path, capsys):
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs /proc")
    assert os.stat("/proc/self/maps").st_size == 0
    with pytest.raises(TooLarge):
        read_small(type(tmp_path)("/proc/self/maps"), 100)


@pytest.mark.parametrize("part", ["manifest.json", "recipe.yaml", "checkpoints/rl-1/checkpoint.json"])
def test_no_file_of_a_run_is_a_device(tmp_path, monkeypatch, capsys, part):
    if not os.path.exists("/dev/zero"):
        pytest.skip("needs /dev/zero")
    from rlhf_peft.runs import RunFolder

    run = RunFolder.create(tmp_path / "runs", "r")
    run.write_recipe("name: r\nstages: []\n")
    run.finish("done")
    place = run.path / part
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)
    assert execute(["runs", "list"]) == 0
    assert execute(["runs", "show", str(run.path)]) in (0, 2)
    assert "unexpected" not in capsys.readouterr().err
