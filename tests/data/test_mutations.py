"""Damaged data files end in a sentence and a documented exit code, never in a traceback, nor do they hang."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rlhf_peft.cli import execute

from .mutations import STAGES, mutated

LONGEST = 20.0
"""Seconds that one command may take here."""
RECIPE = """
version: 1
name: mutations
device: cpu
model: {{path: "builtin:tiny", quantization: none}}
stages:
  - {stage}
"""
BODIES = {
    "sft": "{stage: sft, max_steps: 1, dataset: {path: x.jsonl}}",
    "preference": "{stage: preference, max_steps: 1, dataset: {path: x.jsonl}}",
    "kto": "{stage: preference, method: kto, max_steps: 1, dataset: {path: x.jsonl}}",
    "reward_model": "{stage: reward_model, max_steps: 1, dataset: {path: x.jsonl}}",
    "rl": "{stage: rl, max_steps: 1, algorithm: {name: grpo, num_generations: 2},"
    " sampler: {name: cached, max_new_tokens: 8}, rewards: [{name: length, target: 5}], dataset: {path: x.jsonl}}",
}


@pytest.fixture
def recipes(tmp_path):
    for stage in STAGES:
        (tmp_path / f"{stage}.yaml").write_text(RECIPE.format(stage=BODIES[stage]))
    return tmp_path


def attempt(folder: Path, seed: int, capsys, commands: slice = slice(None)) -> list[str]:
    """What went wrong with one file in some of three commands."""
    stage, name, data = mutated(seed)
    path = folder / name
    path.write_bytes(data)
    own = "preference" if stage == "kto" else stage
    rule = ["error", "skip"][seed % 2]
    place = [f"stages.{own}.dataset.path={path}", f"stages.{own}.dataset.on_bad_row={rule}"]
    found = []
    every = (
        ((0, 1, 2), ["data", str(path)]),
        ((0, 1, 2), ["data", str(path), "--model", "builtin:tiny"]),
        ((0, 2), ["validate", str(folder / f"{stage}.yaml"), *place, "--data"]),
    )
    for allowed, arguments in every[commands]:
        before = time.monotonic()
        code = execute(arguments)
        took, said = time.monotonic() - before, capsys.readouterr()
        text = said.out + said.err
        last = said.err.strip().splitlines()[-1:] or [""]
        what = f"seed {seed} ({name}): {arguments[0]} ended with {code}: {last[0][:300]}"
        if code not in allowed or "error: unexpected" in text or "Traceback" in text:
            found.append(what)
        elif code == 2 and not last[0].startswith("error: "):
            found.append(f"{what} (says nothing)")
        elif took > LONGEST:
            found.append(f"{what} after {took:.0f} seconds")
    path.unlink()
    return found


@pytest.mark.parametrize("command", [0, 1, 2])
def test_damaged_files(recipes, capsys, command):
    """Sixty files, each given to one of the commands."""
    one = slice(command, command + 1)
    assert not [wrong for seed in range(command, 60, 3) for wrong in attempt(recipes, seed, capsys, one)]


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 1000, 100))
def test_many_damaged_files(recipes, capsys, first):
    """A thousand files, each given to every command."""
    assert not [wrong for seed in range(first, first + 100) for wrong in attempt(recipes, seed, capsys)]
