from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf_peft.maths import token_logprobs

from .support import given

N, H, V = 13, 8, 37
OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 3.0},
    "temperature": {"temperature": 0.7},
    "all": {"scale": 1.5, "softcap": 5.0, "temperature": 1.3},
}


def head(n: int = N, h: int = H, v: int = V, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    hidden, weight = torch.randn(n, h, generator=generator), torch.randn(v, h, generator=generator)
    bias, targets = torch.randn(v, generator=generator), torch.randint(v, (n,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets


def plain(hidden, weight, targets, bias=None, scale=1.0, softcap=None, temperature=1.0):
    """The same, with all logits at once."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(weight.dtype, torch.float32)) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp = (logits / temperature).log_softmax(-1)
    return logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1), -(logp.exp() * logp).sum(-1)


def gradient(outputs: tuple[Tensor | None, ...], hidden: Tensor) -> Tensor:
    """Of a sum with different weights on every row and output."""
    n = hidden.shape[0]
    weights = torch.linspace(-1, 2, 2 * n, dtype=torch.float64).view(2, n)
    total = sum((o * w.to(o.dtype)).sum() for o, w in zip(outputs, weights, strict=True) if o is not None)
    return torch.autograd.grad(total, hidden)[0]


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_values_and_gradients_equal_the_plain_computation(options, with_bias, entropy):
    hidden, weight, bias, targets = head()
    hidden.requires_grad_()
    options = options | ({"bias": bias} if with_bias else {})
    logps, entropies = token_logprobs(hidden, weight, targets, chunk=5, entropy=entropy, **options)
    expected = plain(hidden, weight, targets, **options)
    torch.testing.assert_close(logps, expected[0], atol=1e-5, rtol=1e-5)
    assert (entropies is None) != entropy
    if entropies is not None:
        torch.testing.assert_close(entropies, expected[1], atol=1e-5, rtol=1e-5)
    reference = expected if entropy else (expected[0], None)
    found = gradient((logps, entropies), hidden)
    torch.testing.assert_close(found, gradient(reference, hidden), atol=1e-5, rtol=1e-5)


@given(n=st.integers(0, 17), chunk=st.integers(1, 20))
def test_any_chunk_and_any_number_of_rows(n, chunk):
    hidden, weight, bias, targets = head(n=n)
    hidden.requires_grad_()
    outputs = token_logprobs(hidden, weight, targets, bias=bias, chunk=chunk, entropy=True)
    expected = plain(hidden, weight, targets, bias)
    for a, b in zip(outputs, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient(outputs, hidden), gradient(expected, hidden), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_gradients_in_float64(options):
    hidden, weight, bias, targets = head(n=4, v=11, dtype=torch.float64)
    hidden.requires_grad_()

    def function(x: Tensor) -> tuple[Tensor, ...]:
        return token_logprobs(x, weight, targets, bias=bias, chunk=3, entropy=True, **options)

    assert function(hidden)[0].dtype == torch.float64
    assert torch.autograd.gradcheck(function, hidden)


def test_entropy_alone_and_logps_alone_have_their_own_gradients():
    hidden, weight, _, targets = head()
    hidden.requires_grad_()
    for position in (0, 1):
        output = token_logprobs(hidden, weight, targets, chunk=4, entropy=True)[position]
        expected = plain(hidden, weight, targets)[position]
        found, wanted = (torch.autograd.grad(x.sum(), hidden)[0] for x in (output, expected))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_large_logits_and_certain_tokens_stay_finite():
    hidden, weight, _, targets = head()
    hidden = (300 * hidden).requires_grad_()
    outputs = token_logprobs(hidden, weight, targets, entropy=True)
    torch.testing.assert_close(outputs[0], plain(hidden, weight, targets)[0], atol=1e-2, rtol=1e-5)
    assert (outputs[1] > -1e-3).all()
    assert gradient(outputs, hidden).isfinite().all()


def test_excluded_tokens_have_no_part():
    hidden, weight, bias, targets = head()
    bias[3] = -torch.inf
    targets[targets == 3] = 4
    hidden.requires_grad_()
    logps, _ = token_logprobs(hidden, weight, targets, bias=bias)
    without = torch.arange(V) != 3
    moved = targets - (targets > 3).long()
    expected = plain(hidden, weight[without], moved, bias[without])[0]
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient((logps, None), hidden), gradient((expected, None), hidden))


@pytest.mark.parametrize("hidden_dtype", [torch.bfloat16, torch.float32])
def test_half_precision_heads_multiply_as_the_model_does_and_normalise_in_float32(hidden_dtype):
    hidden, weight, bias, targets = head(dtype=torch.bfloat16)
    hidden = hidden.to(hidden_dtype).requires_grad_()
    outputs = token_logprobs(hidden, weight, targets, bias=bias, softcap=4.0, chunk=4, entropy=True)
    expected = plain(hidden.to(torch.bfloat16), weight, targets, bias, softcap=4.0)
    for a, b in zip(outputs, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)
    found, wanted = gradient(outputs, hidden), gradient(expected, hidden)
    assert found.dtype == hidden_dtype
    assert torch.cosine_similarity(found.float().flatten(), wanted.float().flatten(), dim=0) > 0.999


def test_autocast_changes_nothing():
    hidden, weight, bias, targets = head()
    hidden.requires_grad_()
    outside = token_logprobs(hidden, weight, targets, bias=bias, entropy=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = token_logprobs(hidden, weight, targets, bias=bias, entropy=True)
        grad_inside = gradient(inside, hidden)
    for a, b in zip(inside, outside, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(grad_inside, gradient(outside, hidden))


def test_without_gradients_nothing_is_kept():
    hidden, weight, _, targets = head()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        frozen, _ = token_logprobs(hidden, weight, targets)
        hidden.requires_grad_()
        with torch.no_grad():
            quiet, _ = token_logprobs(hidden, weight, targets)
        assert not saved and not frozen.requires_grad and not quiet.requires_grad
        kept, _ = token_logprobs(hidden, weight, targets)
    assert torch.equal(kept, frozen)
    assert {tuple(x.shape) for x in saved} == {(N, H), (V, H), (N,)}


def test_entropy_is_bounded_and_greatest_for_equal_logits():
    hidden, weight, _, targets = head()
    entropies = token_logprobs(hidden, weight, targets, entropy=True)[1]
    uniform = token_logprobs(torch.zeros_like(hidden), weight, targets, entropy=True)[1]
    limit = torch.tensor(float(V)).log()
    assert (entropies >= 0).all() and (entropies < limit).all()
    torch.testing.assert_close(uniform, limit.expand(N))


@pytest.mark.parametrize(
    ("options", "match"),
    [({"chunk": 0}, "chunk is 0"), ({"temperature": 0.0}, "temperature"), ({"softcap": -1.0}, "softcap")],
)
def test_refuses_options_that_are_not_positive(options, match):
    hidden, weight, _, targets = head()
    with pytest.raises(ValueError, match=match):
        token_logprobs(hidden, weight, targets, **options)


def test_refuses_a_trainable_head_and_shapes_that_do_not_fit():
    hidden, weight, bias, targets = head()
    with pytest.raises(ValueError, match="freeze"):
        token_logprobs(hidden, weight.clone().requires_grad_(), targets)
    with pytest.raises(ValueError, match="freeze"):
        token_logprobs(hidden, weight, targets, bias=bias.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"\[N, H\]"):
        token_logprobs(hidden[:, 1:], weight, targets)
    with pytest.raises(ValueError, match=r"targets must be \[13\]"):
        token_logprobs(hidden, weight, targets[1:])


class Sizes(TorchDispatchMode):
    """Remember the largest storage that any operation returned, and how many of that order were made."""

    def __init__(self, least: int):
        super().__init__()
        self.least, self.largest, self.made = least, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in self.given:
                elements = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.largest = max(self.largest, elements)
                if elements >= self.least:
                    self.made.add(leaf.untyped_storage().data_ptr())
        return result

    def ignoring(self, *tensors: Tensor) -> Sizes:
        self.given = {x.untyped_storage().data_ptr() for x in tensors}
        return self


@pytest.mark.parametrize(("n", "chunk", "softcap"), [(2048, 64, None), (256, 32, 30.0)])
def test_memory_depends_on_the_chunk_and_not_on_the_number_of_tokens(n, chunk, softcap):
    h, v = 4, 50_000
    hidden, weight, _, targets = head(n, h, v)
    hidden.requires_grad_()
    sizes = Sizes(least=chunk * v).ignoring(weight)
    with sizes:
        logps, entropies = token_logprobs(hidden, weight, targets, softcap=softcap, chunk=chunk, entropy=True)
        forward = len(sizes.made)
        (logps.sum() + entropies.sum()).backward()
    assert sizes.largest == chunk * v
    assert 0 < forward <= 2 and len(sizes.made) <= 5
