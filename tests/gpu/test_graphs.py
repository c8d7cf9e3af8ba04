"""Decoding by captured CUDA graphs, where this version of the package has it: the same tokens, and faster."""

import time

import pytest
import torch

from rlhf_peft.engine import POLICY
from rlhf_peft.engine.fast import NAMES
from rlhf_peft.engine.fast.paths import LOGP_TOLERANCE
from tests.gpu.support import base_of, logps_of, requests, sampled, stir

pytestmark = pytest.mark.gpu
GRAPHS = [name for name in NAMES if "graph" in name]
WITHOUT = [name for name in NAMES if name not in GRAPHS]


@pytest.fixture(autouse=True)
def there(card):
    if not GRAPHS:
        pytest.skip("no fast path of this version captures CUDA graphs")


@pytest.mark.parametrize(("quantization", "merge"), [("nf4", False), ("nf4", True), ("none", False)])
def test_the_same_as_without(quantization, merge, card, model_of, write_down):
    """Also after the policy has learnt, which changes its adapter in place, and with other numbers of rows."""
    folder = model_of(num_hidden_layers=3)
    with_graphs, without = (
        base_of(folder, card, quantization, fast=fast, merge_rollouts=merge) for fast in (True, WITHOUT)
    )
    same, differences = [], []
    for prompts, rows in ((3, 4), (1, 1), (5, 6), (3, 4)):
        for base in (with_graphs, without):
            stir(base, POLICY)
            with torch.no_grad():
                for parameter in base.roles.parameters(POLICY):
                    parameter.mul_(1 + 0.1 * prompts)
        asked = requests(prompts, rows, tokens=40)
        found, expected = sampled(with_graphs, asked), sampled(without, asked)
        for ids, actions, logps, others in zip(
            found.input_ids, found.action_mask, found.sampler_logps, expected.input_ids, strict=True
        ):
            same.append(ids.tolist() == others.tolist())
            scored = logps_of(without, ids.unsqueeze(0), actions.unsqueeze(0))
            differences.append((logps[actions] - scored).abs())
    mean = float(torch.cat(differences).mean())
    write_down(same_rows=sum(same) / len(same), mean=mean)
    assert mean < LOGP_TOLERANCE


def test_seconds(card, model_of, write_down):
    """Written down only: how fast it is depends on the machine."""
    folder = model_of(num_hidden_layers=4)
    for name, fast in (("with", True), ("without", WITHOUT)):
        base, asked = base_of(folder, card, fast=fast), requests(prompts=4, rows=2, tokens=128)
        seconds = []
        for _ in range(3):
            begun = time.perf_counter()
            tokens = int(sampled(base, asked).completion_lengths.sum())
            seconds.append(time.perf_counter() - begun)
        write_down(**{f"tokens_per_second_{name}": tokens / min(seconds)})
