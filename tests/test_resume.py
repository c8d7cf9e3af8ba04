"""A run in pieces ends as a run in one piece, bit for bit, wherever it was cut."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from rlhf_peft.errors import CheckpointError, RunFolderError

from .resuming import ended, pipeline, run, same

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    result = run(pipeline(folder))
    return ended(folder / "run"), result, folder / "run"


# What is told: SFT 0 to 4; rewards 3 + 3; RL 0 to 4.
@pytest.mark.parametrize("after", [3, 4, 6, 9, 13, 16])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, whole, after):
    expected, result, _ = whole
    recipe = pipeline(tmp_path)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(recipe, after=after)
    assert "--resume" in caught.value.__notes__[0]
    again = run(recipe, resume=True)
    same(ended(tmp_path / "run"), expected)
    seconds = ("seconds",)
    for name, told in result.stages.items():
        plain = lambda out: json.loads(json.dumps({k: v for k, v in out.items() if k not in seconds}))  # noqa: E731
        ours, theirs = plain(again.stages[name]), plain(told)
        for part in (ours, theirs):
            part["metrics"] = {
                k: v for k, v in part.get("metrics", {}).items() if "time" not in k and "tokens_per" not in k
            }
        assert ours == theirs, name


def test_interrupted_again_and_again(tmp_path, whole):
    recipe = pipeline(tmp_path)
    pieces = 0
    while True:
        try:
            run(recipe, after=3, resume=True)
            break
        except KeyboardInterrupt:
            pieces += 1
    assert pieces >= 4
    same(ended(tmp_path / "run"), whole[0])


def test_a_finished_run_is_left_alone(tmp_path, whole):
    recipe = pipeline(tmp_path, sft={"max_steps": 1}, rl={"max_steps": 1})
    run(recipe)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    again = run(recipe, resume=True)
    assert list(again.stages) == ["sft", "reward_model", "rl"]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, whole, caplog):
    recipe = pipeline(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, after=15)
    newest = tmp_path / "run" / "checkpoints" / "rl-2"
    file = newest / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    run(recipe, resume=True)
    assert "rl-2: state.safetensors is damaged" in caplog.text
    same(ended(tmp_path / "run"), whole[0])


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"rl": {"learning_rate": 2e-3}}, "stages.rl"), ({"sft": {"batch_size": 4}}, "stages.sft")],
)
def test_what_has_changed_is_refused_by_name(tmp_path, whole, changes, named):
    with pytest.raises(KeyboardInterrupt):
        run(pipeline(tmp_path), after=13)
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=rf"{named} changed \(\w+ -> \w+\).*--allow-changed {named}"):
        run(pipeline(tmp_path, **changes), resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == lines
    run(pipeline(tmp_path, **changes), resume=True, allow_changed=(named,))


def test_a_changed_dataset_is_refused(tmp_path, whole):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Number {i}:", "completion": " is it."} for i in range(24)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = pipeline(tmp_path, sft={"dataset": {"path": str(file)}, "eval": {}})
    with pytest.raises(KeyboardInterrupt):
        run(recipe, after=2)
    file.write_text(file.read_text().replace("Number 7:", "Number seven:"))
    with pytest.raises(RunFolderError, match=r"dataset\.sft changed .*--allow-changed dataset\.sft"):
        run(recipe, resume=True)
    run(recipe, resume=True, allow_changed=("dataset.sft",))


def killed(recipe, seconds: float) -> bool:
    """Run in a process that is killed after so many seconds; whether it ended before."""
    child = os.fork()
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


def kill_until_done(tmp_path: Path, expected, kills: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    recipe = pipeline(tmp_path)
    for _ in range(kills):
        if killed(recipe, 0.5 + 3.0 * float(torch.rand((), generator=generator))):
            break
    assert killed(recipe, 300.0)
    same(ended(tmp_path / "run"), expected)


def test_killed_at_random_moments(tmp_path, whole):
    kill_until_done(tmp_path, whole[0], 4, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_thirty_times_at_random_moments(tmp_path, whole, seed):
    kill_until_done(tmp_path, whole[0], 5, seed=1 + seed)


@pytest.mark.parametrize("when", ["fill", "rename"])
def test_killed_inside_a_save(tmp_path, whole, when):
    """The process dies as it has written a checkpoint's tensors, or just before the checkpoint gets its name."""
    recipe = pipeline(tmp_path)
    child = os.fork()
    if child == 0:
        from rlhf_peft.runs import checkpoints
        from rlhf_peft.stages import saver

        saves = 0

        def dying(original):
            def call(*arguments, **named):
                nonlocal saves
                out = None if when == "rename" else original(*arguments, **named)
                saves += 1
                if saves == 12:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **named) if when == "rename" else out

            return call

        if when == "fill":
            saver.save_file = dying(saver.save_file)
        else:
            checkpoints.os = type("os", (), {**vars(os), "replace": staticmethod(dying(os.replace))})
        try:
            run(recipe)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    run(recipe, resume=True)
    same(ended(tmp_path / "run"), whole[0])
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_second_process_is_refused(tmp_path, whole):
    recipe = pipeline(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, after=3)
    from rlhf_peft.runs.lock import lock

    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        held = lock(tmp_path / "run")  # noqa: F841 (held while the process lives)
        os.write(write, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    try:
        with pytest.raises(RunFolderError, match="another process is writing this run"):
            run(recipe, resume=True)
        with pytest.raises(RunFolderError, match="another process is writing this run"):
            run(recipe, overwrite=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    run(recipe, resume=True)
    same(ended(tmp_path / "run"), whole[0])


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, whole, monkeypatch):
    from rlhf_peft.stages import saver

    recipe = pipeline(tmp_path)
    original, left = saver.save_file, [9]

    def full(*arguments, **named):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return original(*arguments, **named)

    monkeypatch.setattr(saver, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        run(recipe)
    assert any("is safe" in note for note in caught.value.__notes__)
    monkeypatch.undo()
    run(recipe, resume=True)
    same(ended(tmp_path / "run"), whole[0])


def test_only_some_checkpoints_are_kept(tmp_path, whole):
    recipe = pipeline(tmp_path, rl={"checkpoint": {"every": 1, "keep": 1, "keep_best": "kl"}})
    with pytest.raises(KeyboardInterrupt):
        run(recipe, after=16)
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert {"sft-done", "reward_model-done"} <= names and 1 <= len(names) - 2 <= 2
    told = [
        json.loads((path / "checkpoint.json").read_text())
        for path in (tmp_path / "run" / "checkpoints").iterdir()
    ]
    best = {info["best"][1] for info in told if info["best"]}
    assert best and best <= names
    shutil.rmtree(tmp_path / "run")


def test_no_file_of_ours_is_a_pickle(tmp_path, whole, monkeypatch):
    import pickle

    def never(*arguments, **named):
        raise AssertionError("unpickled a file")

    recipe = pipeline(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, after=3)
    kinds = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".yaml", ".safetensors", ".lock", ""}, kinds
    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(pickle, "load", never)
    run(recipe, resume=True)


def test_verify_reads_every_hash_and_loads_every_adapter(tmp_path, whole, capsys):
    from rlhf_peft.cli import execute

    folder = tmp_path / "copy"
    shutil.copytree(whole[2], folder)
    assert execute(["verify", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok  ") for line in lines)
    assert {"ok  metrics.jsonl", "ok  adapters/policy on builtin:tiny", "ok  checkpoints/rl-done"} <= set(
        lines
    )
    file = folder / "adapters" / "reward-1" / "head.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (folder / "adapters" / "policy" / "extra.bin").write_bytes(b"x")
    (folder / "checkpoints" / "sft-done" / "state.json").unlink()
    assert execute(["verify", str(folder)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 3
    assert any("reward-1/head.safetensors: is another file" in line for line in failed)
    assert any("extra.bin: is not in the manifest" in line for line in failed)
    assert any("sft-done" in line and "state.json is missing" in line for line in failed)


def test_verify_names_the_newest_run(tmp_path, whole, capsys, monkeypatch):
    from rlhf_peft.cli import execute

    monkeypatch.chdir(tmp_path)
    assert execute(["verify"]) == 2
    assert "holds no run" in capsys.readouterr().err
    shutil.copytree(whole[2], tmp_path / "runs" / "mine")
    assert execute(["verify"]) == 0
    assert "run: runs/mine" in capsys.readouterr().err
    assert execute(["verify", "mine"]) == 0
    assert execute(["verify", "yours"]) == 2
