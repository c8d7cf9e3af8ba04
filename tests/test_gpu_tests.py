"""Tests that need a card are collected and marked, and without a card all of them are skipped for one reason."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pytest_on_the_folder(*options):
    """The output of pytest over tests/gpu where no card can be seen."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/gpu",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "-q",
        *options,
    ]
    surroundings = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_without_a_card_all_are_skipped_for_one_reason():
    output = pytest_on_the_folder("-m", "gpu", "-rs", "--strict-markers", "--disable-warnings")
    counted = re.search(r"^(\d+) skipped(, \d+ warnings?)? in ", output, re.MULTILINE)
    assert counted and int(counted[1]) >= 60, output[-2000:]  # None is deselected, so that each is marked.
    reasons = {line.split(": ", 1)[1] for line in output.splitlines() if line.startswith("SKIPPED")}
    assert len(reasons) == 1 and "no NVIDIA card is here" in reasons.pop()
