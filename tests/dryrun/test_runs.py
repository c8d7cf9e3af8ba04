"""Recipes on a CUDA simulated card: no mix of devices or dtypes, from the first stage to the last file."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from packaging.version import Version

from tests.dryrun.cases import CASES
from tests.dryrun.drive import UNAVAILABLE
from tests.dryrun.required import not_possible


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Case to what it counted; all cases in one process, which imports the libraries once."""
    folder = tmp_path_factory.mktemp("dry")
    command = [sys.executable, "-m", "tests.dryrun.drive", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode == UNAVAILABLE:
        not_possible(done.stdout.strip())
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode != 0:
        pytest.fail(done.stderr[-1500:], pytrace=False)
    return dict(json.loads(line) for line in lines)


@pytest.mark.parametrize("case", CASES)
def test_it_runs_on_a_card(results, case):
    result = results[case]
    assert "error" not in result, result
    assert result["launches"] > 500 and result["peak"] > 2**20
    assert (
        result["left"] <= 2**20
    )  # Nothing stays on the card when a run has ended; TRL's trainers keep 1 MiB.


def test_the_host_reads_drawn_tokens_every_eighth_step(results):
    for counts in results["decoding"].values():
        assert counts["reads_a_token"] <= 1 / 8


def test_launches_of_a_decoded_token(results):
    # bitsandbytes 0.50 multiplies with 4-bit weights in one kernel.
    one_kernel = Version(version("bitsandbytes")) >= Version("0.50")
    most = {"dense": (33, 31), "4-bit": (42 if one_kernel else 63, 31)}
    for name, counts in results["decoding"].items():
        assert counts["launches_a_layer"] <= most[name][0] and counts["launches_besides"] <= most[name][1], (
            name
        )


def test_launches_and_kept_bytes_of_an_update(results):
    """Bytes that wait for the backward pass, a token and a layer of 256 wide with 8 heads of 32 and an MLP of 512."""
    kept, recomputed = results["updates"]["kept"], results["updates"]["recomputed"]
    assert kept["launches_a_layer"] <= 276 and recomputed["launches_a_layer"] <= 378
    assert kept["bytes_a_token_a_layer"] <= 8400 and recomputed["bytes_a_token_a_layer"] <= 2 * 256
    # transformers looks once a forward whether rows are packed.
    assert kept["reads"] <= 1 and recomputed["reads"] <= 1


def test_the_host_reads_once_a_micro_step_and_twice_more_an_update(results):
    assert results["reads"]["micro_step"] <= 1 and results["reads"]["update"] <= 3


def test_a_card_merges_only_where_it_needs_to(results):
    assert results["merging"] == {"by default": False, "without the lean step": True, "asked for": True}
