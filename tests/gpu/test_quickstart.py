"""The quickstart on a card: a short one here, the whole of it in `run.sh`."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu
SHORT = (
    "stages.sft.max_steps=2",
    "stages.reward_model.max_steps=2",
    "stages.reward_model.ensemble=1",
    "stages.rl.max_steps=2",
    "stages.rl.prompts_per_step=16",
    "stages.rl.eval.size=16",
    "stages.rl.eval.every=2",
)


def test_it_runs_with_device_auto(device, tmp_path):
    command = [
        sys.executable,
        "-m",
        "rlhf_peft",
        "run",
        "quickstart",
        "device=auto",
        f"output_dir={tmp_path}",
    ]
    done = subprocess.run([*command, *SHORT], capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    manifest = (tmp_path / "quickstart" / "manifest.json").read_text()
    assert f'"device": "{device}"' in manifest
    assert (tmp_path / "quickstart" / "adapters" / "policy" / "adapter_model.safetensors").is_file()
