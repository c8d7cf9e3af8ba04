"""Several processes share a step, and the step is that of one."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from rlhf_peft.plugin import SamplingParams
from rlhf_peft.runs import Elsewhere, RunFolder
from rlhf_peft.stages.ranks import Ranks
from rlhf_peft.stages.rl.metrics import Averages
from rlhf_peft.stages.view import SeededContext


class Rank(Ranks):
    """One of several, whose others are written down."""

    def __init__(self, rank, world, others=()):
        super().__init__()
        self.rank, self.world, self._others = rank, world, others

    def gather(self, value):
        return [value, *self._others]


def test_alone_there_is_nobody_to_wait_for():
    alone = Ranks()
    parameter = torch.nn.Parameter(torch.ones(2))
    alone.sum_gradients([parameter])
    assert alone.main and alone.gather(3) == [3] and not parameter.grad.any()


def test_every_item_goes_to_one_process():
    items = list(range(7))
    assert sorted(Rank(0, 3).mine(items) + Rank(1, 3).mine(items) + Rank(2, 3).mine(items)) == items


def test_seeds_are_those_of_one_process():
    def seed(*stream):
        return hash(stream)

    params = SamplingParams(4)
    one = SeededContext(params, seed, 5)
    for rank in range(2):
        two = SeededContext(params, seed, 5, 0, Rank(rank, 2))
        assert [two.seed(g, 1) for g in range(3)] == [one.seed(2 * g + rank, 1) for g in range(3)]


def test_figures_are_averaged_over_all_processes():
    averages = Averages()
    averages.add_value("loss", 1.0)
    averages.gather(Rank(0, 2, [({"loss": 6.0, "kl": 4.0}, {"loss": 2.0, "kl": 1.0})]))
    assert averages.means() == {"loss": pytest.approx(7 / 3), "kl": 4.0}


def test_only_one_process_writes(tmp_path):
    folder = Elsewhere(tmp_path / "run")
    folder.write_recipe("x: 1")
    folder.append_metrics("rl", 1, {"loss": 1.0})
    folder.append_samples([{"prompt": "x"}])
    folder.update_manifest(seed=1)
    folder.stage_done("rl")
    assert not folder.made and not list(tmp_path.iterdir())
    assert folder.adapter_dir("policy") == RunFolder.create(tmp_path, "run").adapter_dir("policy")


RECIPE = """
version: 1
name: {name}
output_dir: {folder}
device: cpu
model:
  path: builtin:tiny
stages:
  - stage: sft
    dataset: {{name: tiny, part: demonstrations, size: 32}}
    batch_size: 16
  - stage: reward_model
    dataset: {{name: tiny, part: preferences, size: 32}}
    batch_size: 16
    ensemble: 2
  - stage: rl
    dataset: {{name: tiny, part: prompts, size: 32}}
    algorithm: {{name: ppo, value: {value}, num_epochs: 2, num_minibatches: 2, num_generations: 2}}
    sampler: {{name: cached, max_new_tokens: 16}}
    rewards: [{{name: learned}}]
    prompts_per_step: 6
    learning_rate: 1.0e-3
    max_steps: 2
    eval:
      dataset: {{name: tiny, part: prompts, questions: test, size: 8}}
"""


def launch(tmp_path, name, value, world):
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(RECIPE.format(name=name, folder=tmp_path / "runs", value=value))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "rlhf_peft", "run", str(recipe), "-q"]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * world, said
    lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], said


@pytest.mark.slow
@pytest.mark.parametrize("value", ["own", "reward"])
def test_two_processes_take_the_steps_of_one(tmp_path, value):
    one, _ = launch(tmp_path, "one", value, 1)
    two, said = launch(tmp_path, "two", value, 2)
    assert len(one) == len(two)
    for mine, theirs in zip(one, two, strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine:
            if key == "stage" or "time" in key or "seconds" in key or "per_second" in key:
                continue
            assert mine[key] == pytest.approx(theirs[key], rel=2e-3, abs=2e-4), (
                mine["stage"],
                mine["step"],
                key,
            )
    assert "held-out" in said[0] and "next:" not in said[1]
