"""Kernels for log-probabilities, without a card: by Triton's interpreter, and compiled for cards."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from rlhf_peft.engine.fast.kernels import fused_kernels

triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed; it comes with torch for CUDA"
)


def ends_well(tmp_path, module):
    done = subprocess.run(
        [sys.executable, "-m", f"tests.engine.fast.{module}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-1500:]


def test_no_kernel_on_a_cpu():
    assert fused_kernels(torch.device("cpu")) is None


@triton
@pytest.mark.slow
@pytest.mark.parametrize("module", ["interpreted", "compiled"])
def test_kernels(tmp_path, module):
    ends_well(tmp_path, module)
