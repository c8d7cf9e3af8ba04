"""A quantizer that a one-file plugin brings goes through runs, and through what is done with a run."""

import inspect
import io
import json

import pytest

from rlhf_peft import cli

from ..quantizers import Rounded, RoundedQuantizer

HEAD = """\
import torch
from pydantic import Field
from torch import nn

from rlhf_peft.engine.targets import linear_layers
from rlhf_peft.plugin import Options, QuantizerBase, hookimpl, linear_sizes


"""
TAIL = """

@hookimpl
def rlhf_peft_register_quantizers(register):
    register("rounded", RoundedQuantizer)
"""
RECIPE = """\
version: 1
name: small
device: cpu
model:
  path: builtin:tiny
  quantization:
    name: rounded
    most_inputs: 200
stages:
  - stage: sft
    dataset:
      name: tiny
      part: demonstrations
      size: 32
    max_steps: 1
  - stage: rl
    dataset:
      name: tiny
      part: prompts
      size: 16
    algorithm:
      name: grpo
      num_generations: 2
    sampler:
      name: cached
      max_new_tokens: 8
    rewards:
      - name: length
        target: 4
    prompts_per_step: 2
    learning_rate: 1.0e-3
    max_steps: 1
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = [inspect.getsource(part) for part in (Rounded, RoundedQuantizer)]
    (tmp_path / "rounding.py").write_text(HEAD + "\n\n".join(code) + TAIL)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def test_a_run_and_what_is_done_with_it(here, capsys, monkeypatch):
    plugin = ["--plugin", "rounding.py"]
    assert cli.execute(["run", "r.yaml", "-q", *plugin]) == 0
    run = here / "runs" / "small"
    assert json.loads((run / "adapters/policy/base.json").read_text())["quantization"] == "rounded"
    (here / "rounding.py").rename(here / "gone.py")  # from here on its copy in the run folder is used
    capsys.readouterr()
    assert cli.execute(["verify", "small"]) == 0
    assert cli.execute(["export", "small", "--to", "merged", "-o", "whole", "--dtype", "float32"]) == 0
    assert "its copy of the plugin rounding.py is used" in capsys.readouterr().err
    assert cli.execute(["export", "small", "--to", "peft", "-o", "adapter"]) == 0
    assert "Trained on the base in rounded" in (here / "adapter" / "README.md").read_text()
    monkeypatch.setattr("sys.stdin", io.StringIO("The fox\n"))
    assert cli.execute(["chat", "small", "--temp", "0", "--max-new-tokens", "4"]) == 0


def test_an_adapter_is_refused_on_another_quantization(here, capsys):
    plugin = ["--plugin", "rounding.py"]
    assert (
        cli.execute(
            [
                "run",
                "r.yaml",
                "-q",
                "stages=[{stage: sft, max_steps: 1, dataset: {name: tiny, part: demonstrations, size: 32}}]",
                *plugin,
            ]
        )
        == 0
    )
    capsys.readouterr()
    start = [
        "run",
        "r.yaml",
        "-q",
        "name=next",
        "stages.rl.init.policy=runs/small",
        "model.quantization=none",
    ]
    assert cli.execute([*start, *plugin]) == 2
    assert "another quantization (rounded, here none)" in capsys.readouterr().err


def test_plan_counts_what_the_quantizer_says(here, capsys):
    weights = {}
    for name in ("rounded", "none", "int8"):
        command = ["plan", "r.yaml", "--json", f"model.quantization={name}", "--plugin", "rounding.py"]
        assert cli.execute(command) == 0
        weights[name] = json.loads(capsys.readouterr().out)["roles"]["base"]["weights"]
    assert weights["rounded"] == weights["int8"] < weights["none"]
