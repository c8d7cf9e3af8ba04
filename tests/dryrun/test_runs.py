"""Recipes on a CUDA card that is not there: no mix of devices or dtypes, from the first stage to the last file."""

import json
import subprocess
import sys

import pytest

from tests.dryrun.cases import CASES

UNAVAILABLE = 77


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Case to what it counted; all cases in one process, which imports the libraries once."""
    folder = tmp_path_factory.mktemp("dry")
    command = [sys.executable, "-m", "tests.dryrun.drive", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode == UNAVAILABLE:
        pytest.skip(done.stdout.strip())
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(line) for line in lines)


@pytest.mark.parametrize("case", CASES)
def test_it_runs_on_a_card(results, case):
    result = results[case]
    assert "error" not in result, result
    assert result["launches"] > 500 and result["peak"] > 2**20
