"""The packages of this repository in runs on the shipped model."""

import csv
import json

import pytest

from rlhf_peft import cli

from .conftest import PACKAGES

RECIPE = """\
version: 1
name: small
device: cpu
model:
  path: builtin:tiny
stages:
  - stage: rl
    dataset:
      name: tiny
      part: prompts
      size: 32
    algorithm:
      name: {algorithm}
    sampler:
      name: {sampler}
      max_new_tokens: 8
    rewards:
      - name: length-shaping
        target: 4
        tolerance: 0
        forbidden:
          - "[aeiou]"
    prompts_per_step: 4
    learning_rate: 1.0e-3
    max_steps: 2
"""


@pytest.mark.parametrize(
    ("algorithm", "sampler", "figure"),
    [
        ("reinforce", "cached", "baseline"),
        ("rejection_sampling\n      num_generations: 4", "diverse\n      candidates: 2", "loss"),
    ],
    ids=["reinforce", "diverse"],
)
def test_two_steps_with_the_packages(tmp_path, monkeypatch, algorithm, sampler, figure):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE.format(algorithm=algorithm, sampler=sampler))
    files = [str(path / f"{path.name.replace('-', '_')}.py") for path in PACKAGES]
    options = [word for file in files for word in ("--plugin", file)]
    assert cli.execute(["run", "r.yaml", "-q", "--strict-plugins", *options]) == 0
    folder = tmp_path / "runs" / "small"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["step"] > 0]
    assert len(trained) == 2 and all(-2.0 <= line["rewards/length-shaping/mean"] <= 0.0 for line in trained)
    assert all(figure in line for line in trained)
    with (folder / "csv" / "rl.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if int(row["step"]) > 0]
    assert [float(row[figure]) for row in rows] == pytest.approx([line[figure] for line in trained])
