"""Recipes on a CUDA simulated card: no mix of devices or dtypes, from the first stage to the last file."""

import json
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.version import Version

from tests.dryrun.cases import CASES
from tests.dryrun.drive import UNAVAILABLE
from tests.dryrun.required import not_possible


def captures(case):
    """Whether a case decodes with a model of its own by the lean step."""
    stage = case(Path())["stages"][0]
    return stage["stage"] == "rl" and stage["sampler"]["name"] == "cached"


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
    assert result["left"] == 0  # Nothing stays on the card when a run has ended.


@pytest.mark.parametrize("case", [case for case, made in CASES.items() if captures(made)])
def test_its_decoding_is_captured(results, case):
    assert (
        results[case]["graphs"] >= 18
    )  # 20 tokens, of which the first two are drawn before there is a graph.


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


@pytest.mark.parametrize("name", ["dense", "4-bit"])
def test_a_captured_step_is_one_launch_and_waits_for_no_host(results, name):
    counts = results["captured"][name]
    assert counts["launches_a_token"] <= 2 and counts["reads_a_token"] <= 1 / 8


@pytest.mark.parametrize("name", ["dense", "4-bit"])
def test_captured_steps_take_little_more_memory_than_others(results, name):
    mine, others = results["captured"][name]["peak"]
    assert mine <= 1.02 * others


def test_a_graph_for_each_number_of_rows_and_each_reach(results):
    # 95 steps of 4, then 2, then 1 rows; 559 steps over 144, 280 and 560 places. The first ones are not captured.
    assert results["captured"]["ends"] == 95 - 3
    assert results["captured"]["places"] == 559 - 3


def test_where_capturing_fails_the_lean_step_goes_on(results):
    failed, lean = results["captured"]["failed"], results["decoding"]["4-bit"]
    ((level, line),) = failed["said"]
    assert level == "WARNING" and "cuda_graphs is not used any more: it raised RuntimeError" in line
    assert failed["launches_a_token"] == 2 * lean["launches_a_layer"] + lean["launches_besides"]


def test_a_capture_refuses_what_cuda_refuses(results):
    counts = dict(results["refusals"])
    refused = [
        "item",
        "copy to the host",
        "copy from the host",
        "copy into a tensor",
        "tensor from a list",
        "bool index",
    ]
    for name in refused:
        assert counts[name] == "CUDA error: operation not permitted when stream is capturing", name
    assert counts["number"] == counts["new tensor"] == "captured"


def test_a_replay_is_one_launch_and_its_memory_is_held_as_long_as_the_graph(results):
    counts = results["refusals"]
    assert counts["launches of a capture"] == 0 and counts["launches of a replay"] == 1
    assert counts["held"] == 2 * 4096 and counts["left"] == 0


def test_launches_and_kept_bytes_of_an_update(results):
    """Bytes that wait for the backward pass, a token and a layer of 256 wide with 8 heads of 32 and an MLP of 512."""
    kept, recomputed = results["updates"]["kept"], results["updates"]["recomputed"]
    assert kept["launches_a_layer"] <= 276 and recomputed["launches_a_layer"] <= 378
    assert kept["bytes_a_token_a_layer"] <= 8400 and recomputed["bytes_a_token_a_layer"] <= 2 * 256
    # transformers looks once a forward whether rows are packed.
    assert kept["reads"] <= 1 and recomputed["reads"] <= 1


def test_the_host_reads_once_a_micro_step_and_twice_more_an_update(results):
    assert results["reads"]["micro_step"] <= 1 and results["reads"]["update"] <= 3


@pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed; it comes with torch for CUDA"
)
def test_kernels_for_log_probabilities_spare_launches_memory_and_passes(results):
    (launches, peak, seconds), (plain_launches, plain_peak, plain_seconds) = (
        results["log_probabilities"][name] for name in ("kernels", "operators")
    )
    assert launches <= 28 and plain_launches >= 2 * launches
    assert peak <= 0.7 * plain_peak and seconds <= 0.5 * plain_seconds


def test_states_of_the_reward_trunk_stay_on_the_card(results):
    """Two rows of 256 wide in bfloat16, in the second epoch and in the first."""
    copied = results["value_states"]
    assert copied["on the card"] < 4096 and copied["on the CPU"] > 32 * 256 * 2


def test_launches_of_an_optimizer_step(results):
    counts = results["optimizers"]
    for layers in (1, 2):
        fused, eight_bit = counts[f"adamw, {layers}"], counts[f"adamw_8bit, {layers}"]
        assert fused["launches"] <= 2 and fused["reads"] == 0 and fused["kernels"]["_fused_adamw_"] == 1
        assert eight_bit["launches"] == eight_bit["parameters"]


def test_roles_are_added_saved_and_filled_without_a_look_at_the_quantized_weights(results):
    """A layer has 14 tensors of an adapter. PEFT itself copies new ones to the card."""
    assert results["roles"] == {
        "added": {"copy to the card": 14},
        "saved": {"copy to the host": 14},
        "filled": {},
    }


def test_a_card_merges_only_where_it_needs_to(results):
    assert results["merging"] == {"by default": False, "without the lean step": True, "asked for": True}
