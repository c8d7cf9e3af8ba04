import json
from pathlib import Path

import pytest

from rlhf_peft import cli


@pytest.mark.slow
def test_a_bench_measures_each_phase_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["stages.rl.prompts_per_step=4", "stages.rl.sampler.max_new_tokens=8"]
    assert cli.execute(["--no-plugins", "bench", "quickstart", *small, "--steps", "2", "--json", "-q"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 2 and set(result["phases"]) == {"rollout", "scoring", "update"}
    assert sum(phase["share"] for phase in result["phases"].values()) == pytest.approx(1.0)
    assert all(phase["peak"] > 0 and phase["tokens"] > 0 for phase in result["phases"].values())
    assert list(Path(tmp_path).iterdir()) == []
