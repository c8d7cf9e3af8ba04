"""`doctor` on a machine with a card."""

import json
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.gpu


def test_it_names_the_card_and_quantizes_on_it(device, write_down):
    command = [sys.executable, "-m", "rlhf_peft", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {row["what"]: row for row in json.loads(done.stdout)}
    write_down(doctor=[f"{row['state']} {what}: {row['found']}" for what, row in findings.items()])
    assert f"on {device.type}" in findings["quantizer nf4"]["found"]
    assert f"on {device.type}" in findings["quantizer int8"]["found"]
    if device.type == "cuda":
        assert torch.cuda.get_device_name(device) in findings["GPU 0"]["found"]
