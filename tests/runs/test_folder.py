import json
import math
import os
import sys

import pytest
import torch

from rlhf_peft.errors import RunFolderError
from rlhf_peft.redact import scrub
from rlhf_peft.runs import RunFolder, read_manifest, read_metrics, read_samples
from rlhf_peft.runs.manifest import sha256


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "runs", "one")


def test_a_new_run(tmp_path, run):
    assert run.path == tmp_path / "runs" / "one"
    manifest = read_manifest(run.path)
    assert manifest["status"] == "running"
    assert manifest["name"] == "one"
    assert manifest["stages_done"] == []
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "transformers", "peft", "bitsandbytes", "trl"} <= set(manifest["versions"])


def test_metrics_are_flat_lines_and_what_is_not_finite_is_null(run):
    run.append_metrics("sft", 1, {"loss": torch.tensor(0.5), "rows": 3, "bad": math.nan})
    run.append_metrics("rl", 1, {"kl": math.inf})
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first.pop("time") > 0
    assert first == {"stage": "sft", "step": 1, "loss": 0.5, "rows": 3, "bad": None}
    assert "NaN" not in lines[0] and "Infinity" not in lines[1]
    assert len(read_metrics(run.path)) == 2
    (row,) = read_metrics(run.path, stage="rl")
    assert math.isnan(row["kl"])
    with pytest.raises(ValueError, match="cannot be called step"):
        run.append_metrics("sft", 2, {"step": 1})
    with pytest.raises(TypeError, match="must be a number"):
        run.append_metrics("sft", 2, {"loss": "high"})


def test_a_half_written_last_line_is_left_out_and_any_other_is_an_error(run):
    run.append_metrics("sft", 1, {"loss": 1.0})
    path = run.path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"stage": "sf')
    assert [row["loss"] for row in read_metrics(run.path)] == [1.0]
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(RunFolderError, match="line 2: not JSON"):
        read_metrics(run.path)
    assert read_samples(run.path) == []


def test_samples_hold_what_models_write(run):
    text = "caf\u00e9 \u2028 \n \ud800"
    run.append_samples([{"prompt": text, "scores": torch.tensor([1.0, math.nan]), "path": run.path}])
    (row,) = read_samples(run.path)
    assert row == {"prompt": text, "scores": [1.0, None], "path": str(run.path)}


def test_the_recipe_and_the_manifest_hold_no_credentials(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_environmentenvironment")
    run.write_recipe("a: https://me:secret@host/x?token=tttt&y=1\nname: one\n")
    run.update_manifest(plugins={"x": "git+https://tok@host/r"}, note=["hf_abcdefghijklmnopqrstuvwx"])
    run.finish("done")
    everything = "".join(p.read_text() for p in run.path.iterdir())
    for secret in ("secret", "tttt", "tok@", "abcdefghij", "environment"):
        assert secret not in everything
    assert (run.path / "recipe.yaml").read_text() == "a: https://***@host/x?token=***&y=1\nname: one\n"
    assert scrub("no secrets: a@b, x=1") == "no secrets: a@b, x=1"


def test_finishing_records_the_hash_of_every_artifact(run, tmp_path):
    run.write_recipe("version: 1\n")
    run.append_metrics("sft", 1, {"loss": 1.0})
    (run.adapter_dir("policy") / "adapter_model.safetensors").write_bytes(b"weights")
    code = tmp_path / "rewards.py"
    code.write_text("x = 1\n")
    run.copy_code(code)
    run.stage_done("sft")
    run.stage_done("sft")
    run.finish("done", gold=0.5)
    manifest = read_manifest(run.path)
    assert manifest["status"] == "done"
    assert manifest["stages_done"] == ["sft"]
    assert manifest["gold"] == 0.5
    assert manifest["finished"] >= manifest["started"]
    assert set(manifest["artifacts"]) == {
        "recipe.yaml",
        "metrics.jsonl",
        "adapters/policy/adapter_model.safetensors",
        "code/rewards.py",
    }
    for name, digest in manifest["artifacts"].items():
        assert sha256(run.path / name) == digest
    assert manifest["code"] == {"rewards.py": sha256(code)}
    with pytest.raises(ValueError, match="unknown status"):
        run.finish("fine")


def test_two_code_files_of_one_name_both_stay(run, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.py").write_text(f"x = '{folder}'\n")
        run.copy_code(tmp_path / folder / "r.py")
    run.copy_code(tmp_path / "a" / "r.py")
    copies = sorted(path.read_text() for path in (run.path / "code").iterdir())
    assert copies == ["x = 'a'\n", "x = 'b'\n"]
    assert len(read_manifest(run.path)["code"]) == 2


@pytest.mark.parametrize(
    ("status", "holds"), [("done", "a finished run"), (None, "a run that is not finished")]
)
def test_a_run_is_not_replaced_unasked(run, status, holds):
    if status:
        run.finish(status)
    run.write_recipe("old: 1\n")
    with pytest.raises(RunFolderError, match=f"holds {holds}.*--overwrite") as caught:
        RunFolder.create(run.path.parent, "one")
    assert caught.value.exit_code == 2
    assert (run.path / "recipe.yaml").read_text() == "old: 1\n"


def test_overwriting_removes_what_a_run_made_and_nothing_else(run):
    run.append_metrics("sft", 1, {"loss": 1.0})
    (run.adapter_dir("policy") / "x").write_text("x")
    (run.path / "notes.txt").write_text("mine")
    run.finish("done")
    run.log.write_text("an earlier line\n")
    again = RunFolder.create(run.path.parent, "one", overwrite=True)
    assert not run.log.exists()
    assert sorted(p.name for p in again.path.iterdir()) == [".lock", "manifest.json", "notes.txt"]
    assert read_manifest(again.path)["status"] == "running"


def test_overwriting_does_not_follow_links(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    os.symlink(outside, run.path / "checkpoints")
    RunFolder.create(run.path.parent, "one", overwrite=True)
    assert (outside / "precious").exists()
    assert not (run.path / "checkpoints").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_somebody_elses_folder_is_never_touched(tmp_path, overwrite):
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(RunFolderError, match="not a run's, so nothing was touched"):
        RunFolder.create(tmp_path, "one", overwrite=overwrite)
    assert os.listdir(folder) == ["manifest.json"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="a file is in the way"):
        RunFolder.create(tmp_path, "file", overwrite=overwrite)


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "one").mkdir()
    assert RunFolder.create(tmp_path, "one").path == tmp_path / "one"


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "/etc", "a\\b", "", ".hidden", "a.", "a\0b"])
def test_a_name_stays_inside_the_output_folder(tmp_path, name):
    with pytest.raises(RunFolderError, match="cannot name a run"):
        RunFolder.create(tmp_path / "runs", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_does_not_lead_out_of_the_output_folder(tmp_path, overwrite):
    outside = tmp_path / "outside"
    RunFolder.create(tmp_path, "outside")
    runs = tmp_path / "runs"
    runs.mkdir()
    os.symlink(outside, runs / "one")
    os.symlink(tmp_path / "nowhere", runs / "two")
    for name in ("one", "two"):
        with pytest.raises(RunFolderError, match="a link that leads out"):
            RunFolder.create(runs, name, overwrite=overwrite)
    assert (outside / "manifest.json").exists()
    assert not (tmp_path / "nowhere").exists()


def test_the_output_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "runs")
    RunFolder.create(tmp_path / "runs", "one")
    assert (tmp_path / "disk" / "one" / "manifest.json").exists()


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunFolderError, match="cannot be made"):
        RunFolder.create(tmp_path / "runs", "one")


@pytest.mark.parametrize("role", ["../x", "", "a/b"])
def test_roles_are_folder_names(run, role):
    with pytest.raises(ValueError, match="cannot name a role"):
        run.adapter_dir(role)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not readable as JSON"),
        ("[]", "not the manifest"),
        ('{"format": "rlhf-peft run", "version": 9}', "Upgrade"),
    ],
)
def test_a_manifest_that_is_not_ours(tmp_path, content, expected):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RunFolderError, match=expected):
        read_manifest(tmp_path)
    with pytest.raises(RunFolderError, match="not a run folder"):
        read_manifest(tmp_path / "nowhere")
