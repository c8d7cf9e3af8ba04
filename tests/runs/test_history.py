"""Runs as they were written."""

import pytest

from rlhf_peft.errors import RunFolderError
from rlhf_peft.runs import History, RunFolder, histories, remove_run


def history(tmp_path, manifest, times):
    run = History(tmp_path, {"started": 100.0, **manifest})
    run.__dict__["metrics"] = [{"stage": "sft", "step": i, "time": t} for i, t in enumerate(times, 1)]
    return run


@pytest.mark.parametrize(
    ("manifest", "times", "seconds"),
    [
        ({"finished": 160.0}, [110.0, 150.0], 60.0),
        ({}, [110.0, 150.0], 50.0),
        ({}, [], None),
        # Killed after 110, resumed at 1,000; and stopped for the night, twice.
        ({"finished": 1020.0, "resumed": [1000.0]}, [110.0, 1010.0], 30.0),
        ({"finished": 3020.0, "resumed": [1000.0, 3000.0]}, [110.0, 1010.0, 3010.0], 40.0),
    ],
)
def test_how_long_a_run_took_is_without_its_interruptions(tmp_path, manifest, times, seconds):
    assert history(tmp_path, manifest, times).seconds == seconds


def test_runs_are_listed_the_oldest_first_and_nothing_else(tmp_path):
    for name in ("b", "a"):
        RunFolder.create(tmp_path, name).finish("done")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "manifest.json").write_text("{}")
    assert [run.name for run in histories(tmp_path)] == ["b", "a"] and histories(tmp_path / "none") == []


def test_a_run_that_is_being_written_is_not_removed(tmp_path):
    run = RunFolder.create(tmp_path, "r")
    (tmp_path / "link").symlink_to(run.path, target_is_directory=True)
    with pytest.raises(RunFolderError, match="a link; remove what it leads to"):
        remove_run(tmp_path / "link")
    assert run.path.is_dir()
    with pytest.raises(RunFolderError, match="not a run folder"):
        remove_run(tmp_path)
    run.finish("done")
    remove_run(run.path)
    assert not run.path.exists()


def test_a_recipe_that_is_none_is_said(tmp_path):
    run = RunFolder.create(tmp_path, "r")
    run.finish("done")
    with pytest.raises(RunFolderError, match=r"recipe.yaml: cannot be read"):
        _ = History.of(run.path).recipe
    (run.path / "recipe.yaml").write_text("- 1")
    with pytest.raises(RunFolderError, match=r"recipe.yaml: not a recipe"):
        _ = History.of(run.path).keys


def test_a_run_that_nobody_writes_any_more_is_not_running(tmp_path):
    run = RunFolder.create(tmp_path, "r")
    assert History.of(run.path).status == "running"
    run.release()
    assert History.of(run.path).status == "killed"
    (run.path / ".lock").unlink()
    assert History.of(run.path).status == "killed" and not (run.path / ".lock").exists()


def test_a_process_that_ends_at_once_says_that_its_runs_have_stopped(tmp_path):
    from rlhf_peft.runs.folder import abandon

    run = RunFolder.create(tmp_path, "r")
    done = RunFolder.create(tmp_path, "d")
    done.finish("done")
    abandon()
    assert (History.of(run.path).status, History.of(done.path).status) == ("stopped", "done")
    run.release()
