"""What is replaced by a link while a run goes on leads nowhere: nothing outside of the run is written or removed."""

import hashlib
import os
import shutil

import pytest

from rlhf_peft import library_messages
from rlhf_peft.cli import execute
from rlhf_peft.errors import RunFolderError
from rlhf_peft.runs import Checkpoints, RunFolder, restore
from rlhf_peft.runs.lock import is_written

from ..analysis.conftest import make_run  # noqa: F401 (a fixture)


@pytest.fixture
def run(tmp_path):
    """A run that goes on: two checkpoints, an adapter, lines and code."""
    run = RunFolder.create(tmp_path / "runs", "r")
    run.write_recipe("name: r\n")
    run.append_metrics("sft", 1, {"loss": 1.0})
    run.append_samples([{"text": "x"}])
    (run.adapter_dir("policy") / "w").write_text("later weights")
    run.wrote_adapter("policy")
    (tmp_path / "code.py").write_text("x = 1\n")
    run.copy_code(tmp_path / "code.py")
    for step in (1, 2):
        Checkpoints(run.path).save(f"sft-{step}", {"stage": "sft"}, fill)
    yield run
    run.release()


def fill(folder):
    (folder / "adapters" / "policy").mkdir(parents=True)
    (folder / "adapters" / "policy" / "w").write_text("weights")


def moved(run, part, outside):
    """Move a part of the run elsewhere and leave a link; returns what lies there."""
    shutil.move(run.path / part if part else run.path, outside)
    (run.path / part if part else run.path).symlink_to(outside)
    return contents(outside)


def contents(place):
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    return {str(file): file.read_bytes() if file.is_file() else None for file in files}


WRITES = {
    "metrics": lambda run: run.append_metrics("sft", 2, {"loss": 0.5}),
    "samples": lambda run: run.append_samples([{"text": "y"}]),
    "cut": lambda run: run.cut({}),
    "adapter": lambda run: (run.adapter_dir("policy") / "w").write_text("others"),
    "new role": lambda run: run.adapter_dir("reward-0"),
    "code": lambda run: run.copy_code(run.path.parent.parent / "code.py"),
    "checkpoint": lambda run: Checkpoints(run.path).save("sft-3", {"stage": "sft"}, fill),
    "prune": lambda run: Checkpoints(run.path).remove(["sft-1"]),
    "forget": lambda run: Checkpoints(run.path).forget_after(0),
    "bring back": lambda run: restore.restore(
        run.path, {"adapters/policy/w": hashlib.sha256(b"weights").hexdigest()}
    ),
    "manifest": lambda run: run.update_manifest(seed=1),
    "finish": lambda run: run.finish("done"),
}


@pytest.mark.parametrize(
    ("part", "writes"),
    [
        ("metrics.jsonl", ["metrics", "cut"]),
        ("samples.jsonl", ["samples", "cut"]),
        ("adapters", ["adapter", "new role", "bring back"]),
        ("adapters/policy", ["adapter", "bring back"]),
        ("code", ["code"]),
        ("checkpoints", ["checkpoint", "prune", "forget"]),
        ("", list(WRITES)),
    ],
)
def test_nothing_is_written_through_a_link(run, tmp_path, part, writes):
    before = moved(run, part, tmp_path / "outside")
    for write in writes:
        with pytest.raises(RunFolderError, match=r"a link that leads out of the run"):
            WRITES[write](run)
    assert contents(tmp_path / "outside") == before


@pytest.mark.parametrize("part", ["code/code.py", "recipe.yaml", "manifest.json"])
def test_a_file_that_is_written_whole_takes_the_place_of_a_link(run, tmp_path, part):
    before = moved(run, part, tmp_path / "outside")
    (tmp_path / "code.py").write_text("x = 1\n")
    run.write_recipe("name: other\n")
    run.copy_code(tmp_path / "code.py")
    assert contents(tmp_path / "outside") == before


def test_the_log_does_not_go_through_a_link(run, tmp_path):
    messages = library_messages.Messages()
    messages.write_to(run.log)
    messages.keep("before")
    before = moved(run, "run.log", tmp_path / "outside")
    messages.keep("after")
    assert contents(tmp_path / "outside") == before


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(run, tmp_path):
    run.finish("done")
    (tmp_path / "precious").write_text("keep me")
    (run.path / ".lock").unlink()
    (run.path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunFolderError, match=r"\.lock: a link that leads out of the run"):
        RunFolder.resume(tmp_path / "runs", "r")
    is_written(run.path)
    assert (tmp_path / "precious").read_text() == "keep me"
    os.unlink(tmp_path / "precious")
    with pytest.raises(RunFolderError, match=r"\.lock: a link"):
        RunFolder.create(tmp_path / "runs", "r", overwrite=True)
    assert not (tmp_path / "precious").exists()


def test_a_report_takes_the_place_of_a_link_in_the_run(make_run, tmp_path, capsys):  # noqa: F811
    run = make_run("one")
    (tmp_path / "outside").write_text("keep me")
    (run.path / "report.html").symlink_to(tmp_path / "outside")
    assert execute(["report", str(run.path)]) == 0
    assert (tmp_path / "outside").read_text() == "keep me"
    assert "<html" in (run.path / "report.html").read_text()
    # A link that the user names is followed, as by any other program.
    (tmp_path / "mine").symlink_to(tmp_path / "outside")
    assert execute(["report", str(run.path), "-o", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine").is_symlink() and "<html" in (tmp_path / "outside").read_text()
