"""What is damaged or removed between two parts of a run is noticed, and brought back or named."""

import json
import os
import shutil

import pytest

from rlhf_peft.cli import execute
from rlhf_peft.errors import RunFolderError
from rlhf_peft.runs import verify_files

from .support import ended, pipeline, run, same


@pytest.fixture
def parts(interrupted, tmp_path):
    """A run that was interrupted in its last stage, to be damaged, and its recipe."""
    return interrupted(15), tmp_path / "run"


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def everything(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


DAMAGES = {
    "a flipped bit": lambda run: flip(run / "adapters" / "reward-0" / "adapter_model.safetensors"),
    "a missing head": lambda run: (run / "adapters" / "reward-1" / "head.safetensors").unlink(),
    "an empty configuration": lambda run: (run / "adapters" / "policy" / "adapter_config.json").write_text(
        ""
    ),
    "a missing role": lambda run: shutil.rmtree(run / "adapters" / "reward-0"),
    "no adapters": lambda run: shutil.rmtree(run / "adapters"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_adapters_come_back_from_checkpoints(parts, whole, caplog, capsys, damage):
    recipe, folder = parts
    DAMAGES[damage](folder)
    run(recipe, resume=True)
    same(ended(folder), whole[0])
    assert "had been damaged or removed, and came back" in caplog.text
    assert execute(["verify", str(folder)]) == 0, capsys.readouterr().out


def test_an_adapter_of_which_no_whole_copy_is_left_is_trained_again(parts, whole, caplog):
    recipe, folder = parts
    shutil.rmtree(folder / "adapters" / "reward-0")
    flip(folder / "checkpoints" / "reward_model-done" / "adapters" / "reward-0" / "head.safetensors")
    run(recipe, resume=True)
    assert "Going on from sft-done" in caplog.text
    same(ended(folder), whole[0])


def test_what_is_damaged_while_a_run_goes_on_is_found_by_verify(parts):
    recipe, folder = parts
    run(recipe, resume=True, after=None)
    flip(folder / "adapters" / "policy" / "adapter_model.safetensors")
    shutil.rmtree(folder / "adapters" / "reward-1")
    wrong = {check.what for check in verify_files(folder) if check.wrong}
    assert "adapters/policy/adapter_model.safetensors" in wrong
    assert "adapters/reward-1/head.safetensors" in wrong


def test_hashes_are_those_of_what_was_written(tmp_path):
    """A file that changes before the run ends is not hashed as it lies there then."""
    from rlhf_peft.runs import RunFolder

    folder = RunFolder.create(tmp_path, "r")
    folder.write_recipe("name: r\n")
    folder.append_metrics("sft", 1, {"loss": 1.0})
    (folder.adapter_dir("policy") / "adapter_model.safetensors").write_bytes(b"x" * 100)
    folder.wrote_adapter("policy")
    flip(folder.path / "adapters" / "policy" / "adapter_model.safetensors")
    (folder.path / "recipe.yaml").write_text("name: s\n")
    metrics = folder.path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("1.0", "2.0"))
    folder.append_metrics("sft", 2, {"loss": 1.0})
    folder.finish("done")
    assert {check.what for check in verify_files(folder.path) if check.wrong} == {
        "adapters/policy/adapter_model.safetensors",
        "recipe.yaml",
        "metrics.jsonl",
    }


def test_a_run_whose_checkpoints_are_gone_is_not_replaced(parts):
    recipe, folder = parts
    shutil.rmtree(folder / "checkpoints")
    before = everything(folder)
    with pytest.raises(RunFolderError, match=r"checkpoints are gone.*--overwrite.*name="):
        run(recipe, resume=True)
    assert everything(folder) == before


def test_a_run_that_never_came_to_a_checkpoint_begins_again(tmp_path, whole):
    short = {"max_steps": 1}
    recipe = pipeline(tmp_path, sft={"checkpoint": {"every": None}, **short}, reward_model=short, rl=short)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, after=1)
    shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
    run(recipe, resume=True)
    assert ended(tmp_path / "run")["status"] == "done"


def shorter(folder):
    file = folder / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-2]))


def changed(folder):
    file = folder / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[-2] = lines[-2].replace(b"0", b"1")
    file.write_bytes(b"".join(lines))


@pytest.mark.parametrize("damage", [shorter, changed])
def test_lines_that_are_gone_are_written_again_from_an_older_checkpoint(parts, whole, caplog, damage):
    recipe, folder = parts
    damage(folder)
    run(recipe, resume=True)
    assert "metrics.jsonl" in caplog.text and "Going on from" in caplog.text
    same(ended(folder), whole[0])


def test_without_any_lines_the_remedy_is_named_and_works(parts, caplog):
    recipe, folder = parts
    (folder / "metrics.jsonl").unlink()
    before = everything(folder)
    with pytest.raises(
        RunFolderError, match=r"--resume-from rl-\d --allow-changed metrics.jsonl.*nothing was touched"
    ) as caught:
        run(recipe, resume=True)
    assert everything(folder) == before
    name = str(caught.value).partition("--resume-from ")[2].split()[0]
    run(recipe, resume_from=name, allow_changed=("metrics.jsonl",))
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # It was interrupted as step 3 was logged, so that step is still to be logged.
    assert (name, steps) == ("rl-3", [3, 4])


@pytest.mark.parametrize("text", [None, "", '{"format": "rlhf-peft run", "vers'])
def test_a_lost_manifest_is_made_again(parts, whole, caplog, capsys, text):
    recipe, folder = parts
    (folder / "manifest.json").unlink()
    if text is not None:
        (folder / "manifest.json").write_text(text)
    with pytest.raises(RunFolderError, match="--resume goes on from them"):
        run(recipe)
    run(recipe, resume=True)
    assert "is made again from the checkpoint" in caplog.text
    same(ended(folder), whole[0])
    assert execute(["verify", str(folder)]) == 0, capsys.readouterr().out


def test_a_later_version_s_manifest_is_not_replaced(parts):
    recipe, folder = parts
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 9}))
    with pytest.raises(RunFolderError, match="Upgrade"):
        run(recipe, resume=True)


def test_a_run_that_was_killed_after_its_last_stage_is_closed(parts, whole):
    recipe, folder = parts
    run(recipe, resume=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    run(recipe, resume=True)
    same(ended(folder), whole[0])
    assert os.path.exists(folder / "adapters")
