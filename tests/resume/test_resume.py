"""A run in pieces ends as a run in one piece, bit for bit, wherever it was cut."""

import importlib.metadata
import json
import os
import shutil
import signal
import time

import pytest
import torch

from rlhf_peft.errors import RunFolderError
from rlhf_peft.session import loss_scale

from ..small_model import one_layer
from .support import ended, pipeline, preferences, run, same

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


# What is told: SFT 0 to 4; rewards 3 + 3; RL 0 to 4.
SLOW = [pytest.param(after, marks=pytest.mark.slow) for after in range(1, 17) if after != 13]


@pytest.mark.parametrize("after", [13, *SLOW])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, whole, after):
    expected, result, _ = whole
    recipe = pipeline(tmp_path)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(recipe, after=after)
    # Told of the evaluation before the first update, there is nothing to go on from yet.
    assert after == 1 or "--resume" in caught.value.__notes__[0]
    again = run(recipe, resume=True)
    same(ended(tmp_path / "run"), expected)
    seconds = ("seconds",)
    for name, outcome in result.stages.items():
        plain = lambda out: json.loads(json.dumps({k: v for k, v in out.items() if k not in seconds}))  # noqa: E731
        ours, theirs = plain(again.stages[name]), plain(outcome)
        for part in (ours, theirs):
            part["metrics"] = {
                k: v for k, v in part.get("metrics", {}).items() if "time" not in k and "tokens_per" not in k
            }
        assert ours == theirs, name


@pytest.mark.parametrize("method", ["dpo", pytest.param("kto", marks=pytest.mark.slow)])
def test_preferences_go_on_where_they_were(tmp_path, method):
    run(preferences(tmp_path / "whole", method))
    recipe = preferences(tmp_path / "parts", method)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, after=5)
    run(recipe, resume=True)
    same(ended(tmp_path / "parts" / "run"), ended(tmp_path / "whole" / "run"))


@pytest.mark.parametrize("after", [5, pytest.param(9, marks=pytest.mark.slow)])
def test_a_loss_scale_goes_on_where_it_was(tmp_path, monkeypatch, after):
    """Rewards 3 + 3, RL 0 to 4, in float16, with a first scale at which gradients overflow."""
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**24)

    def halved(folder):
        recipe = pipeline(folder)
        model = recipe.model.model_copy(update={"compute_dtype": "float16"})
        return recipe.model_copy(update={"model": model, "stages": recipe.stages[1:]})

    run(halved(tmp_path / "whole"))
    lines = [json.loads(line) for line in (tmp_path / "whole/run/metrics.jsonl").read_text().splitlines()]
    scales = [line["loss_scale"] for line in lines if "loss_scale" in line]
    assert len(scales) == 10 and 1 < min(scales) < max(scales) <= 2.0**24
    with pytest.raises(KeyboardInterrupt):
        run(halved(tmp_path / "parts"), after=after)
    run(halved(tmp_path / "parts"), resume=True)
    same(ended(tmp_path / "parts" / "run"), ended(tmp_path / "whole" / "run"))


@pytest.mark.slow
def test_interrupted_again_and_again(tmp_path, whole):
    recipe = pipeline(tmp_path)
    pieces = 0
    while True:
        try:
            run(recipe, after=5, resume=True)
            break
        except KeyboardInterrupt:
            pieces += 1
    assert pieces >= 2
    same(ended(tmp_path / "run"), whole[0])


def test_a_finished_run_is_left_alone(tmp_path, whole):
    recipe = pipeline(tmp_path)
    shutil.copytree(whole[2], tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    again = run(recipe, resume=True)
    assert list(again.stages) == ["sft", "reward_model", "rl"]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rl": {"learning_rate": 2e-3, "max_steps": 9}}, r"max_steps: 4 -> 9"),
        ({"sft": {"batch_size": 4}}, r"stages\.sft\.batch_size: 8 -> 4"),
        ({"rl": {"rewards": [{"name": "tiny-gold"}]}}, r"stages\.rl\.rewards\.learned\.weight: 1\.0 -> null"),
    ],
)
def test_a_finished_run_is_not_taken_for_one_with_another_recipe(whole, changes, message):
    folder = whole[2]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(RunFolderError, match=rf"holds a finished run.*{message}.*--overwrite"):
        run(pipeline(folder.parent, **changes), resume=True)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_a_finished_run_takes_what_changes_no_result(whole):
    recipe = pipeline(whole[2].parent, rl={"checkpoint": {"every": 3}}).model_copy(
        update={"tracking": ["tensorboard"]}
    )
    assert run(recipe, resume=True).stages


def test_a_finished_run_is_not_taken_for_one_with_other_code(tmp_path, whole):
    folder, code = tmp_path / "run", tmp_path / "rewards.py"
    shutil.copytree(whole[2], folder)
    code.write_text("x = 1\n")
    with pytest.raises(RunFolderError, match=r"holds a finished run.*rewards\.py has another content"):
        run(pipeline(tmp_path), resume=True, code_files=[code])


def test_a_finished_run_gets_its_adapters_back(tmp_path, whole, caplog):
    folder = tmp_path / "run"
    shutil.copytree(whole[2], folder)
    shutil.rmtree(folder / "adapters")
    run(pipeline(tmp_path), resume=True)
    assert "came back from a checkpoint" in caplog.text
    same(ended(folder), whole[0])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rl": {"learning_rate": 2e-3}}, "stages.rl.learning_rate: 0.001 -> 0.002"),
        ({"sft": {"batch_size": 4}}, "stages.sft.batch_size: 8 -> 4"),
    ],
)
def test_what_has_changed_is_refused_by_name(tmp_path, interrupted, changes, named):
    interrupted(13)
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    named, detail = ".".join(named.split(".")[:2]), named
    with pytest.raises(RunFolderError, match=rf"{named} changed \({detail}\).*--allow-changed {named}"):
        run(pipeline(tmp_path, **changes), resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == lines
    if named == "stages.rl":
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
    with pytest.raises(KeyboardInterrupt):
        run(recipe, after=2, resume=True, allow_changed=("dataset.sft",))


def test_rows_are_not_encoded_again(tmp_path, interrupted, monkeypatch):
    from rlhf_peft.data import encoded

    recipe = interrupted(13)

    def never(*arguments, **named):
        raise AssertionError("rows were encoded")

    monkeypatch.setattr(encoded, "in_batches", never)
    run(recipe, resume=True)


def test_a_second_process_is_refused(tmp_path, interrupted):
    recipe = interrupted(13)
    from rlhf_peft.runs.lock import lock

    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        run_lock = lock(tmp_path / "run")  # noqa: F841 (held while the process lives)
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
    with pytest.raises(KeyboardInterrupt):
        run(recipe, after=2, resume=True)


def test_only_some_checkpoints_are_kept(tmp_path, whole):
    recipe = pipeline(tmp_path, rl={"checkpoint": {"every": 1, "keep": 1, "keep_best": "kl"}})
    with pytest.raises(KeyboardInterrupt):
        run(recipe, after=16)
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    # On the way there are the newest, the best, and the one that was written as the run was interrupted.
    assert {"sft-done", "reward_model-done"} <= names and 1 <= len(names) - 2 <= 3
    infos = [
        json.loads((path / "checkpoint.json").read_text())
        for path in (tmp_path / "run" / "checkpoints").iterdir()
    ]
    best = {info["best"][1] for info in infos if info["best"]}
    assert best and best <= names
    shutil.rmtree(tmp_path / "run")


def test_no_file_of_ours_is_a_pickle(tmp_path, interrupted, monkeypatch):
    import pickle

    def never(*arguments, **named):
        raise AssertionError("unpickled a file")

    recipe = interrupted(13)
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
    assert {"ok  metrics.jsonl", f"ok  adapters/policy on {one_layer()}", "ok  checkpoints/rl-done"} <= set(
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


def out_of_memory(monkeypatch, allowed):
    """SFT's loss takes so many rows at once and no more."""
    from trl import SFTTrainer

    original, refused = SFTTrainer.compute_loss, []

    def limited(self, model, inputs, *given, **named):
        if len(inputs["input_ids"]) > allowed:
            refused.append(len(inputs["input_ids"]))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, model, inputs, *given, **named)

    monkeypatch.setattr(SFTTrainer, "compute_loss", limited)
    return refused


@pytest.mark.slow
def test_out_of_memory_in_the_first_update_after_a_resume_loses_nothing(tmp_path, whole, monkeypatch):
    """Nothing has been written by the new process then, and nothing is remembered."""
    recipe = pipeline(tmp_path, sft={"batch_size": 4, "eval": {}})
    with pytest.raises(KeyboardInterrupt):
        run(recipe, after=2)
    before = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    refused = out_of_memory(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, after=3, resume=True)
    assert refused == [4]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert lines[: len(before) - 1] == before[: len(before) - 1]
    assert [line["step"] for line in rows if line["stage"] == "sft"] == [1, 2, 3, 4]
    monkeypatch.undo()
    run(recipe, resume=True)


def test_a_run_that_is_to_be_replaced_stays_where_nothing_fits(tmp_path, interrupted, monkeypatch):
    from rlhf_peft.errors import RlhfPeftError

    recipe = interrupted(13)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    out_of_memory(monkeypatch, 0)
    with pytest.raises(RlhfPeftError, match="out of memory with 1 rows"):
        run(recipe, overwrite=True)
    assert {
        p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"
    } == before


def test_where_no_checkpoint_is_whole_nothing_is_replaced(tmp_path, interrupted):
    recipe = interrupted(13)
    for file in (tmp_path / "run" / "checkpoints").glob("*/checkpoint.json"):
        file.write_text(file.read_text().replace('"number"', '"nomber"'))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=r"checkpoint.json is damaged.*nothing was touched.*--overwrite"):
        run(recipe, resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_figure_that_is_not_a_number_is_never_the_best(tmp_path, whole):
    from rlhf_peft.session.checkpointing import Checkpointer
    from rlhf_peft.session.snapshots import Snapshot

    checkpointer = Checkpointer(None, None, None, {})
    snapshot = lambda step: Snapshot("rl", step, [], None, {}, {}, {}, {}, {}, [])  # noqa: E731
    stage = pipeline(tmp_path, rl={"checkpoint": {"keep_best": "kl"}}).stages[-1]
    for step, value in enumerate([float("nan"), 1.0, float("nan"), 0.5], start=1):
        checkpointer._note_best(stage, snapshot(step), {"kl": value})
    assert checkpointer._best == (1.0, "rl-2")


def written_with(folder, **versions):
    """Let the manifest say other versions."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"].update(versions)
    path.write_text(json.dumps(manifest))


def test_a_resume_under_other_versions_says_so_in_one_line(tmp_path, interrupted, whole, caplog):
    recipe = interrupted(13)
    written_with(tmp_path / "run", torch="2.0.1", bitsandbytes="0.1", numpy="1.0")
    run(recipe, resume=True)
    messages = [r.getMessage() for r in caplog.records if "was written with" in r.getMessage()]
    here = importlib.metadata.version
    assert messages == [
        f"{tmp_path / 'run'} was written with torch 2.0.1 (here {here('torch')}), bitsandbytes 0.1 (here "
        f"{here('bitsandbytes')}). It goes on, but need not end as it would have there."
    ]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["versions"]["torch"] == here("torch")
    same(ended(tmp_path / "run"), whole[0])


def test_verify_under_other_versions_says_so_in_one_line(tmp_path, whole, capsys):
    from rlhf_peft.cli import execute

    shutil.copytree(whole[2], tmp_path / "copy")
    assert execute(["verify", str(tmp_path / "copy")]) == 0
    assert "versions" not in capsys.readouterr().out
    written_with(tmp_path / "copy", transformers="4.9")
    assert execute(["verify", str(tmp_path / "copy")]) == 0
    here = importlib.metadata.version("transformers")
    assert f"ok  versions: written with transformers 4.9 (here {here})\n" in capsys.readouterr().out
