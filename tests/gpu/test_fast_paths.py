"""Every fast path against the plain way, in bfloat16 on a card, by log-probabilities."""

import pytest
import torch

from rlhf_peft.engine.fast.paths import LOGP_TOLERANCE
from tests.gpu.support import base_of, gradients_of, logps_of, requests, rows_of, sampled, verified

pytestmark = pytest.mark.gpu
EVERY = [
    "fused_lora", "gated_mlp", "fused_norm", "shared_prefix", "fused_logprobs", "dense_weights", "lean_decoder",
]  # fmt: skip


def difference(first, second, write_down):
    """Mean difference in nats a token; the largest is written down too."""
    each = (first - second).abs()
    write_down(mean=float(each.mean()), largest=float(each.max()), tokens=each.numel())
    return float(each.mean())


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize(
    "paths",
    [
        ["fused_lora"],
        ["fused_lora", "gated_mlp"],
        ["fused_norm"],
        ["shared_prefix"],
        ["fused_logprobs"],
        EVERY,
    ],
)
def test_forward_and_backward(paths, quantization, device, model_of, write_down):
    folder = model_of(num_hidden_layers=2)
    plain, fast = (base_of(folder, device, quantization, fast=chosen) for chosen in (False, paths))
    ids, actions = rows_of()
    shared = fast.forwards.share_prompts(ids, actions)
    assert (shared is not None) == ("shared_prefix" in paths)
    expected = logps_of(plain, ids, actions)
    assert difference(logps_of(fast, ids, actions, shared), expected, write_down) < LOGP_TOLERANCE
    logps, gradients = gradients_of(fast, ids, actions, shared)
    assert difference(logps, expected, write_down) < LOGP_TOLERANCE
    cosine = float(torch.cosine_similarity(gradients, gradients_of(plain, ids, actions)[1], dim=0))
    write_down(cosine=cosine)
    assert cosine > 0.99
    unused = ("dense_weights", "lean_decoder", *(["fused_logprobs"] if device.type == "cpu" else []))
    used = [name for name in paths if name not in unused]
    assert all(verified(fast, name) for name in used), fast.forwards._fast._verified


@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen2"])
@pytest.mark.parametrize(
    ("quantization", "merge"), [("nf4", False), ("nf4", True), ("none", False), ("none", True)]
)
def test_decoding(quantization, merge, kind, device, model_of, write_down):
    """What the sampler says of its tokens is what the plain way says of them; rows end at different steps."""
    folder = model_of(num_hidden_layers=3, kind=kind)
    fast = base_of(folder, device, quantization, merge_rollouts=merge)
    plain = base_of(folder, device, quantization, fast=False)
    rollout = sampled(fast, requests(prompts=3, rows=4, tokens=24))
    found, expected = [], []
    for ids, actions, logps in zip(
        rollout.input_ids, rollout.action_mask, rollout.sampler_logps, strict=True
    ):
        found.append(logps[actions])
        expected.append(logps_of(plain, ids.unsqueeze(0), actions.unsqueeze(0)))
    assert difference(torch.cat(found), torch.cat(expected), write_down) < LOGP_TOLERANCE
    if device.type == "cuda" or merge:  # On a CPU the lean step needs dense weights.
        assert verified(fast, "lean_decoder"), fast.forwards._fast._verified
