"""The norm as one kernel: the same numbers as transformers' norms, forward and backward."""

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from rlhf_peft.engine.fast.fused_norm import FusedNorm, install
from rlhf_peft.engine.fast.paths import FastPaths


def norm_of(kind, dtype, width=64):
    norm = kind(width, eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * torch.randn(width, generator=torch.Generator().manual_seed(1)))
    return norm.to(dtype).requires_grad_(False)


def inputs(dtype, width=64):
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(2, 7, width, generator=generator)).to(dtype)
    return x.requires_grad_(), torch.randn(2, 7, width, generator=generator).to(dtype)


def passed(forward, x, grad):
    out = forward(x)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
def test_in_float32_it_is_transformers_norm(kind):
    norm, (x, grad) = norm_of(kind, torch.float32), inputs(torch.float32)
    for mine, theirs in zip(
        passed(FusedNorm(norm, FastPaths()).ours, x, grad), passed(norm, x, grad), strict=True
    ):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_no_further_from_the_truth(dtype):
    norm, (x, grad) = norm_of(LlamaRMSNorm, dtype), inputs(dtype)
    exact = norm_of(LlamaRMSNorm, torch.float64)
    with torch.no_grad():
        exact.weight.copy_(norm.weight)
    truth = passed(exact, x.detach().double().requires_grad_(), grad.double())
    mine = passed(FusedNorm(norm, FastPaths()).ours, x, grad)
    theirs = passed(norm, x, grad)
    for ours, plain, true in zip(mine, theirs, truth, strict=True):
        assert ours.dtype == dtype
        error, usual = ((y.double() - true).abs().mean() for y in (ours, plain))
        assert error <= 1.05 * usual


def test_autocast_leaves_its_dtype():
    norm, (x, _) = norm_of(LlamaRMSNorm, torch.bfloat16), inputs(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert FusedNorm(norm, FastPaths()).ours(x).dtype == torch.bfloat16


def test_a_cpu_keeps_the_models_own_way():
    norm, (x, _) = norm_of(LlamaRMSNorm, torch.bfloat16), inputs(torch.bfloat16)
    expected = norm(x)
    install(norm, FastPaths())
    assert isinstance(norm.forward, FusedNorm) and torch.equal(norm(x), expected)


def test_only_norms_of_this_form_are_taken():
    """Gemma's norm multiplies by 1 + weight, and has its epsilon under another name."""
    for module in (norm_of(GemmaRMSNorm, torch.float32), torch.nn.LayerNorm(8), torch.nn.Linear(4, 4)):
        install(module, FastPaths())
        assert "forward" not in module.__dict__
    norm = norm_of(LlamaRMSNorm, torch.float32)
    install(norm, FastPaths(["fused_lora"]))
    assert "forward" not in norm.__dict__


def test_a_norm_that_computes_something_else_keeps_its_own_way():
    class Odd(LlamaRMSNorm):
        def forward(self, hidden_states):
            return super().forward(hidden_states) + 1

    norm = norm_of(Odd, torch.float32)
    x, _ = inputs(torch.float32)
    assert not FusedNorm(norm, FastPaths())._is_same(x)
    assert FusedNorm(norm_of(LlamaRMSNorm, torch.float32), FastPaths())._is_same(x)


def test_a_norm_that_is_given_a_gate_goes_its_own_way():
    """Mamba's norms take a gate beside the states."""

    class Gated(LlamaRMSNorm):
        def forward(self, hidden_states, gate=None):
            return super().forward(hidden_states * torch.nn.functional.silu(gate))

    norm = norm_of(Gated, torch.float32)
    x, gate = inputs(torch.float32)
    expected = norm(x, gate)
    install(norm, FastPaths())
    assert torch.equal(norm(x, gate), expected) and torch.equal(norm(x, gate=gate), expected)
