"""Log-probabilities by Triton kernels: each reads a chunk of logits once, torch's operators six times and more.

Online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867. TRL's `trl.kernels.chunked_logprob` (1.16) rounds logits
to the dtype of the model before the softmax, which is wrong by 0.04 nats a token; these kernels read them in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Words of the vocabulary that a program holds at once."""


@triton.jit
def _capped(x, inner, outer, HAS_CAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits from a product: inner x, or outer tanh(inner x); the hyperbolic tangent as well."""
    z = x * inner
    tanh = 2.0 * tl.sigmoid(2.0 * z) - 1.0
    if HAS_CAP:
        z = outer * tanh
    return z, tanh


@triton.jit
def _read_rows(  # type: ignore[no-untyped-def]
    product_ptr, stride, targets_ptr, logps_ptr, entropies_ptr, lse_ptr, words, inner, outer,
    HAS_CAP: tl.constexpr, HAS_ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row: the largest logit so far, and sums relative to it."""
    row = tl.program_id(0).to(tl.int64)
    product_ptr += row * stride
    largest = -float("inf")
    total = 0.0
    weighted = 0.0
    for start in range(0, words, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < words
        z, _ = _capped(tl.load(product_ptr + at, mask=inside, other=0.0), inner, outer, HAS_CAP)
        z = tl.where(inside, z, -float("inf"))
        now = tl.maximum(largest, tl.max(z, axis=0))
        base = tl.where(now == -float("inf"), 0.0, now)  # all words so far are forbidden
        e = tl.exp(z - base)
        shrink = tl.exp(largest - base)
        total = total * shrink + tl.sum(e, axis=0)
        if HAS_ENTROPY:
            weighted = weighted * shrink + tl.sum(tl.where(inside, e * z, 0.0), axis=0)
        largest = now
    lse = largest + tl.log(total)
    target, _ = _capped(tl.load(product_ptr + tl.load(targets_ptr + row)), inner, outer, HAS_CAP)
    tl.store(logps_ptr + row, target - lse)
    tl.store(lse_ptr + row, lse)
    if HAS_ENTROPY:
        tl.store(entropies_ptr + row, lse - weighted / total)


@triton.jit
def _write_gradients(  # type: ignore[no-untyped-def]
    product_ptr, stride, out_ptr, out_stride, targets_ptr, lse_ptr, entropies_ptr, to_logps_ptr, to_entropies_ptr,
    words, inner, outer,
    HAS_CAP: tl.constexpr, HAS_ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a block of a row: onehot - p, and -p (log p + H), times the row's gradients and the cap's slope."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < words
    product = tl.load(product_ptr + row * stride + at, mask=inside, other=0.0)
    z, tanh = _capped(product, inner, outer, HAS_CAP)
    logp = z - tl.load(lse_ptr + row)
    p = tl.exp(logp)
    is_target = at == tl.load(targets_ptr + row)
    gradient = tl.load(to_logps_ptr + row) * (tl.where(is_target, 1.0, 0.0) - p)
    if HAS_ENTROPY:
        gradient -= tl.load(to_entropies_ptr + row) * p * (logp + tl.load(entropies_ptr + row))
    if HAS_CAP:
        gradient = gradient * (1.0 - tanh * tanh)
    out = out_ptr + row * out_stride + at
    tl.store(out, gradient.to(out_ptr.dtype.element_ty), mask=inside)


class TritonKernels:
    """`maths.logprobs.LogitKernels` by Triton."""

    def read(
        self,
        product: Tensor,
        factors: tuple[float, float | None],
        targets: Tensor,
        out: tuple[Tensor, Tensor | None, Tensor],
    ) -> None:
        """See `maths.logprobs.LogitKernels`."""
        logps, entropies, lse = out
        _read_rows[(len(product),)](
            product, product.stride(0), targets, logps, lse if entropies is None else entropies, lse,
            product.shape[1], factors[0], factors[1] or 1.0,
            HAS_CAP=factors[1] is not None, HAS_ENTROPY=entropies is not None, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip

    def write(
        self,
        product: Tensor,
        factors: tuple[float, float | None],
        targets: Tensor,
        stats: tuple[Tensor, Tensor | None],
        gradients: tuple[Tensor, Tensor | None],
        out: Tensor,
    ) -> None:
        """See `maths.logprobs.LogitKernels`."""
        lse, entropies = stats
        to_logps, to_entropies = gradients
        words, has_entropy = product.shape[1], to_entropies is not None
        _write_gradients[(len(product), triton.cdiv(words, BLOCK))](
            product, product.stride(0), out, out.stride(0), targets, lse, entropies if has_entropy else lse,
            to_logps, to_entropies if has_entropy else lse, words, factors[0], factors[1] or 1.0,
            HAS_CAP=factors[1] is not None, HAS_ENTROPY=has_entropy, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
