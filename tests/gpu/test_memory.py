"""Memory of a card: what a dry run and `plan` say of it, and what becomes of a run that has too little."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf_peft.planning.bench import bench
from rlhf_peft.planning.forecast import forecast
from rlhf_peft.recipe import load
from tests.benchmarks.setup import Quiet, registry_of
from tests.dryrun.cases import rl, write_files
from tests.dryrun.required import not_possible
from tests.gpu.peaks import UNAVAILABLE, peaks
from tests.gpu.support import WIDE, run, with_rewards

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
DRY_RUN_SHARE = 0.1
"""Largest difference between a card and a dry run, as a share; its tensors are those of the card."""
TOO_LOW, TOO_HIGH = -0.1, 0.5
"""Differences between `plan` and a card, as a share: of a small model it says too much (36 % by the dry run)."""
MEBIBYTE = 2**20


def grpo(folder, model):
    """GRPO of 64 rows, all of whose tokens fit into one forward if there is memory for it."""
    write_files(folder)
    recipe = rl(
        {"name": "grpo", "num_generations": 8},
        sampler={"max_new_tokens": 96},
        prompts_per_step=8,
        max_steps=2,
    )(folder)
    recipe["model"] |= {"path": str(model), "max_length": 256}
    return recipe


def test_peaks_are_those_of_the_dry_run(card, model_of, write_down):
    folder = model_of(**WIDE)
    capability = ".".join(map(str, torch.cuda.get_device_capability(card)))
    # It looks for no card: what torch then says of cards comes from the dry run alone.
    surroundings = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.gpu.peaks", str(folder), capability]
    with subprocess.Popen(
        command, cwd=ROOT, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as dry:
        measured = peaks(folder, card)
        reserved = torch.cuda.max_memory_reserved(card)
        said, complaint = dry.communicate(timeout=50)
    if dry.returncode == UNAVAILABLE:
        not_possible(said.strip())
    lines = [line.removeprefix("RESULT ") for line in said.splitlines() if line.startswith("RESULT ")]
    assert lines, complaint[-1500:]
    simulated = json.loads(lines[-1])
    shares = {name: simulated[name] / measured[name] - 1 for name in measured}
    write_down(measured=measured, simulated=simulated, shares=shares, reserved=reserved)
    assert all(abs(share) < DRY_RUN_SHARE for share in shares.values()), shares


def test_peaks_are_near_the_plan(card, tmp_path, model_of, write_down):
    registry = registry_of()
    document = with_rewards(grpo(tmp_path, model_of(**WIDE)))
    document["model"]["fast"] = ["fused_lora", "gated_mlp", "dense_weights", "lean_decoder"]
    recipe = load({**document, "device": str(card)}, (), plugins=registry)
    planned = {phase.name: phase.blocks for phase in forecast(recipe, registry).plan.phases}
    measured = {name: phase.peak for name, phase in bench(recipe, registry, Quiet(), steps=2).phases.items()}
    shares = {name: planned[name] / measured[name] - 1 for name in measured}
    reserved = torch.cuda.memory_reserved(card)
    write_down(
        planned={name: planned[name] for name in measured},
        measured=measured,
        shares=shares,
        reserved=reserved,
    )
    assert TOO_LOW < max(planned[name] for name in measured) / max(measured.values()) - 1 < TOO_HIGH, shares


def test_a_run_that_has_too_little_memory_does_less_at_once(card, tmp_path, model_of, caplog, write_down):
    recipe = grpo(tmp_path, model_of(**WIDE))
    torch.cuda.reset_peak_memory_stats(card)
    _, plenty = run(recipe, card)
    reserved = torch.cuda.max_memory_reserved(card)
    assert "out of memory" not in caplog.text
    torch.cuda.empty_cache()

    limit = reserved // 2
    total = torch.cuda.get_device_properties(card).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total, card)
    torch.cuda.reset_peak_memory_stats(card)
    _, little = run(recipe, card)
    warnings = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    write_down(
        reserved=reserved,
        limit=limit,
        reserved_then=torch.cuda.max_memory_reserved(card),
        warnings=warnings,
        norms=[[step["grad_norm"] for step in steps] for steps in (plenty, little)],
    )
    assert any("From here on at most" in warning for warning in warnings)
    assert torch.cuda.max_memory_reserved(card) <= limit + MEBIBYTE
    assert len(little) == len(plenty) and all(step["grad_norm"] > 0 for step in little)
