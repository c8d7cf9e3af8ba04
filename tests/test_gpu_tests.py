"""Tests that need a card are collected and marked, and skipped for one reason without one; the wheels they need."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.gpu.trim import trim

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


def test_a_trimmed_wheel_lists_what_it_still_has(tmp_path):
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    libraries = [f"bitsandbytes/libbitsandbytes_{name}.so" for name in ("cpu", "cuda130", "cuda118", "xpu")]
    files = ["bitsandbytes/__init__.py", *libraries, "bitsandbytes-1.dist-info/RECORD"]
    with zipfile.ZipFile(wheel, "w") as made:
        for file in files[:-1]:
            made.writestr(file, "content of " + file)
        made.writestr(files[-1], "".join(f"{file},sha256=x,1\n" for file in files))
    trim(wheel)
    with zipfile.ZipFile(wheel) as trimmed:
        record = trimmed.read(files[-1]).decode().splitlines()
        assert trimmed.namelist() == [line.split(",")[0] for line in record] == [*files[:3], files[-1]]
        assert trimmed.read(libraries[0]).decode() == "content of " + libraries[0]
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("bitsandbytes/__init__.py", "")
    with pytest.raises(SystemExit, match=r"no libbitsandbytes_cuda130\.so"):
        trim(wheel)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize("script", ["kit.sh", "run.sh"])
def test_the_scripts_can_be_read_by_bash(script):
    done = subprocess.run(
        ["bash", "-n", str(ROOT / "tests" / "gpu" / script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
