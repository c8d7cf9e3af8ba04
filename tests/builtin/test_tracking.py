"""Figures reach the trackers that a recipe names, also over an interruption, and a tracker that fails ends no run."""

import json

import pytest

from rlhf_peft import api
from rlhf_peft.builtin import tracking
from rlhf_peft.errors import UsageError
from rlhf_peft.recipe import load
from rlhf_peft.registry import Registry
from rlhf_peft.runs import read_metrics

from ..resume.support import Interrupts
from ..small_model import one_layer


def recipe(folder, *trackers, name="tracked"):
    data = {"name": "tiny", "size": 16}
    return load(
        {
            "version": 1,
            "name": name,
            "output_dir": str(folder),
            "device": "cpu",
            "tracking": list(trackers),
            "model": {"path": one_layer(), "max_length": 64},
            "lora": {"r": 2},
            "stages": [
                {
                    "stage": "sft",
                    "dataset": {**data, "part": "demonstrations"},
                    "batch_size": 4,
                    "max_steps": 3,
                },
                {
                    "stage": "reward_model",
                    "dataset": {**data, "part": "preferences"},
                    "batch_size": 4,
                    "max_steps": 3,
                    "checkpoint": {"every": 1},
                },
            ],
        },
        (),
        plugins=Registry.load(no_plugins=True),
    )


def run(*arguments, **options):
    return api.run(recipe(*arguments), registry=Registry.load(no_plugins=True), **options).folder


def expected(folder):
    """(step over all stages, loss) of every update."""
    rows = [row for row in read_metrics(folder) if "loss" in row]
    return [(row["step"] + (3 if row["stage"] == "reward_model" else 0), row["loss"]) for row in rows]


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tracking" / "tensorboard")).Reload()
    names = [name for name in events.Tags()["scalars"] if name in ("sft/loss", "reward_model/loss")]
    return sorted((event.step, event.value) for name in names for event in events.Scalars(name))


def same(found, wanted):
    assert [step for step, _ in found] == [step for step, _ in wanted]
    assert [value for _, value in found] == pytest.approx([value for _, value in wanted], rel=1e-6)


@pytest.fixture
def nothing_fails(caplog):
    """An observer that raises is a warning."""
    yield
    assert [record.message for record in caplog.get_records("call") if "raised in" in record.message] == []


@pytest.mark.usefixtures("nothing_fails")
def test_tensorboard_reads_every_update_back(tmp_path):
    pytest.importorskip("tensorboard")
    folder = run(tmp_path, "tensorboard")
    assert [step for step, _ in expected(folder)] == [1, 2, 3, 4, 5, 6]
    same(read_tensorboard(folder), expected(folder))
    assert tracking.RUNS == {}


@pytest.mark.usefixtures("nothing_fails")
def test_an_interrupted_run_goes_on_in_the_same_curve(tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "tensorboard", reporter=Interrupts(5))
    folder = run(tmp_path, "tensorboard", resume=True)
    same(read_tensorboard(folder), expected(folder))


@pytest.mark.usefixtures("nothing_fails")
def test_mlflow_reads_every_update_back_offline(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "mlflow", reporter=Interrupts(5))
    folder = run(tmp_path, "mlflow", resume=True)
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'rlhf-peft'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "tracked" and found.data.params["lora.r"] == "2"
    told = [
        m
        for stage in ("sft", "reward_model")
        for m in client.get_metric_history(found.info.run_id, f"{stage}/loss")
    ]
    same(sorted({(metric.step, metric.value) for metric in told}), expected(folder))


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(UsageError, match=r"tracking: wandb is not installed here. Type:  pip install wandb"):
        run(tmp_path, "wandb")
    assert list(tmp_path.iterdir()) == []


class Fake:
    """A tracker of accelerate's kind that runs on every process, as W&B's and trackio's do."""

    main_process_only = False

    def __init__(self, *place, **options):
        self.run_name = "x"

    def start(self): ...

    def store_init_configuration(self, values):
        assert values["model.path"] == one_layer() and values["stages.sft.max_steps"] == 3

    def log(self, values, step): ...

    def finish(self): ...


@pytest.fixture
def fake(monkeypatch):
    """Takes the place of trackio."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["trackio"])
    return lambda kind: monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "trackio", kind)


@pytest.mark.usefixtures("nothing_fails")
def test_it_is_no_matter_whether_a_trainer_has_reset_accelerates_state(tmp_path, fake):
    from accelerate import PartialState
    from accelerate.logging import get_logger

    told = []

    class Tells(Fake):
        def log(self, values, step):
            get_logger("accelerate.tracking").debug("told")
            told.append(step)

    class Resets(Interrupts):
        def step(self, stage, step, metrics):
            if stage == "reward_model":
                PartialState._reset_state()

    fake(Tells)
    run(tmp_path, "trackio", reporter=Resets())
    assert told == [1, 2, 3, 4, 5, 6]


def test_a_tracker_that_fails_ends_no_run(tmp_path, fake, caplog):
    class Fails(Fake):
        def log(self, values, step):
            raise ConnectionError("no network")

    fake(Fails)
    folder = run(tmp_path, "trackio")
    assert json.loads((folder / "manifest.json").read_text())["status"] == "done"
    told = [record.message for record in caplog.records if "ConnectionError: no network" in record.message]
    assert len(told) == 3 and "switched off" in told[-1]
