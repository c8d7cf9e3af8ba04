"""Log-probabilities of given tokens from hidden states, without a [N, V] tensor in forward or backward.

The head is frozen, so hidden states alone get a gradient. The forward keeps them, the targets and one number
a row; the backward makes the logits again, chunk by chunk. Each pass over a chunk works in place in buffers
that all chunks share: fresh memory of that size costs more than the arithmetic on it.

Left out on purpose: gradients of the head, a second derivative, and entropies over logits of -inf.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class LogitKernels(Protocol):
    """What can take the place of torch's operators on a chunk of logits.

    Logits come from `product` [n, V] float32, which is hidden W^T + bias, by `factors` (a, b): a x, or b tanh(a x)
    where b is not None.
    """

    def read(
        self,
        product: Tensor,
        factors: tuple[float, float | None],
        targets: Tensor,
        out: tuple[Tensor, Tensor | None, Tensor],
    ) -> None:
        """Write log-probabilities, entropies if there is room for them, and logarithms of the partition sums [n]."""

    def write(
        self,
        product: Tensor,
        factors: tuple[float, float | None],
        targets: Tensor,
        stats: tuple[Tensor, Tensor | None],
        gradients: tuple[Tensor, Tensor | None],
        out: Tensor,
    ) -> None:
        """Write the gradient in `product`, divided by a (without b) or by a b, into `out` [n, V]; may be `product`.

        Args:
            product: as it was read.
            factors: as they were.
            targets: [n].
            stats: logarithms of the partition sums, and entropies where these have a gradient [n].
            gradients: in log-probabilities and, or None, in entropies [n].
            out: in any dtype.
        """


class _Head(NamedTuple):
    """The language-model head and what happens to its logits; `chunk` is the rows worked on at a time."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    temperature: float
    chunk: int
    kernels: LogitKernels | None = None

    @property
    def factors(self) -> tuple[float, float | None]:
        """Logits from a product x: a x, or b tanh(a x)."""
        if self.softcap is None:
            return self.scale / self.temperature, None
        return self.scale / self.softcap, self.softcap / self.temperature

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the softmax: float32, or float64 for a float64 head."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    @property
    def sums_in_full(self) -> bool:
        """Whether logits come in the dtype of the softmax: they are computed in it, or CUDA's products give it."""
        return self.weight.dtype == self.dtype or self.weight.device.type == "cuda"

    def buffer(self, n: int, dtype: torch.dtype | None = None) -> Tensor:
        """Make room for one chunk of logits, [chunk, V] or less if there are only `n` rows."""
        size = (min(n, self.chunk), self.weight.shape[0])
        return torch.empty(size, dtype=dtype or self.dtype, device=self.weight.device)


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk: int = 1024,
    entropy: bool = False,
    kernels: LogitKernels | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute the log-probabilities of targets, and on request the entropies, in chunks of rows.

    u = scale (hidden W^T + bias);  z = softcap tanh(u / softcap) / temperature
    logp = z_target - logsumexp(z);  H = -sum_v p_v log p_v;  dlogp/dz = onehot - p;  dH/dz = -p (log p + H)

    The matrix product is in the dtype of the weight, the rest in float32 (float64 for a float64 weight), with
    autocast off. Beyond inputs and outputs the peak is one to four buffers of [chunk, V], whatever N is.
    Recomputing logits in the backward pass: cut cross-entropy, Wijmans et al. 2024, arXiv:2411.09009.

    Args:
        hidden: [N, H] last hidden states, each at the position before its target.
        weight: [V, H] of the language-model head; frozen.
        targets: [N] int64 token ids.
        bias: [V] of the head, or None; frozen.
        scale: factor on the logits that some models have.
        softcap: bound on the logits that some models have, or None.
        temperature: that of sampling, positive.
        chunk: rows at a time; memory grows with it.
        entropy: also give entropies.
        kernels: that read logits in float32, in place of torch's operators.

    Returns:
        Log-probabilities [N] and entropies [N] or None, in nats, differentiable in `hidden`.

    Raises:
        ValueError: the head requires gradients, shapes do not fit, or an option is not positive.
    """
    _check(hidden, weight, targets, bias)
    head = _Head(weight, bias, scale, softcap, temperature, chunk, kernels)
    for name in ("softcap", "temperature", "chunk"):
        option = getattr(head, name)
        if option is not None and option <= 0:
            raise ValueError(f"{name} is {option}; it must be positive")
    if torch.is_grad_enabled() and hidden.requires_grad:
        logps, entropies = _TokenLogprobs.apply(hidden, targets, weight, bias, head[2:], entropy)
    else:
        with torch.no_grad():
            logps, entropies, _ = _forward(hidden, targets, head, entropy)
    return logps, entropies


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        options: tuple[float, float | None, float, int, LogitKernels | None],
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        logps, entropies, lse = _forward(hidden, targets, _Head(weight, bias, *options), entropy)
        ctx.save_for_backward(hidden, targets, weight, bias, lse, entropies)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return logps, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logps: Tensor | None, grad_entropies: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, targets, weight, bias, lse, entropies = ctx.saved_tensors
        if grad_logps is None and grad_entropies is None:
            return (None,) * 6
        head = _Head(weight, bias, *ctx.options)
        grads = grad_logps, grad_entropies
        return _backward(hidden, targets, head, lse, entropies, grads), None, None, None, None, None


def _forward(
    hidden: Tensor, targets: Tensor, head: _Head, entropy: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return log-probabilities, entropies (or None) and the logarithms of the partition sums, all [N]."""
    n = hidden.shape[0]
    lse = hidden.new_empty(n, dtype=head.dtype)
    logps = torch.empty_like(lse)
    entropies = torch.empty_like(lse) if entropy else None
    out, spare = head.buffer(n), head.buffer(n) if entropy and head.kernels is None else None
    raw = out if head.sums_in_full else head.buffer(n, head.weight.dtype)
    for start in range(0, n, head.chunk):
        rows = slice(start, start + head.chunk)
        if head.kernels is not None:
            product = _product(hidden[rows], head, raw, out)
            stats = logps[rows], None if entropies is None else entropies[rows], lse[rows]
            head.kernels.read(product, head.factors, targets[rows], stats)
            continue
        z = _logits(hidden[rows], head, raw, out)
        target = z.gather(-1, targets[rows].unsqueeze(-1)).squeeze(-1)
        largest = z.amax(-1, keepdim=True)
        z.sub_(largest)
        if entropies is None or spare is None:
            log_sum = z.exp_().sum(-1).log_()
        else:
            p = torch.exp(z, out=spare[: z.shape[0]])
            total = p.sum(-1)
            log_sum = total.log()
            entropies[rows] = log_sum - z.mul_(p).sum(-1) / total
        torch.add(largest.squeeze(-1), log_sum, out=lse[rows])
        torch.sub(target, lse[rows], out=logps[rows])
    return logps, entropies, lse


def _backward(
    hidden: Tensor,
    targets: Tensor,
    head: _Head,
    lse: Tensor,
    entropies: Tensor | None,
    grads: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """Return the gradient in the hidden states [N, H]."""
    n = hidden.shape[0]
    grad_logps = torch.zeros_like(lse) if grads[0] is None else grads[0]
    grad_entropies = grads[1]
    fused = head.kernels is not None
    out, spare = head.buffer(n), head.buffer(n) if grad_entropies is not None and not fused else None
    slope = head.buffer(n) if head.softcap is not None and not fused else None
    raw = head.buffer(n, head.weight.dtype) if head.weight.dtype != head.dtype else out
    result = torch.empty_like(hidden)
    for start in range(0, n, head.chunk):
        rows = slice(start, start + head.chunk)
        if head.kernels is not None:
            product = _product(hidden[rows], head, raw, out)
            to = (
                grad_logps[rows].contiguous(),
                None if grad_entropies is None else grad_entropies[rows].contiguous(),
            )
            stats = lse[rows], None if entropies is None else entropies[rows]
            head.kernels.write(product, head.factors, targets[rows], stats, to, raw[: len(product)])
            result[rows] = _through_head(raw[: len(product)], head, raw)
            continue
        z = _logits(hidden[rows], head, raw, out)
        steepness = _softcap_slope(z, head, slope)
        g = grad_logps[rows].unsqueeze(-1)
        z.sub_(lse[rows].unsqueeze(-1))
        if spare is None or entropies is None or grad_entropies is None:
            z.exp_().mul_(-g)
        else:
            p = torch.exp(z, out=spare[: z.shape[0]])
            z.add_(entropies[rows].unsqueeze(-1)).mul_(-grad_entropies[rows].unsqueeze(-1)).sub_(g).mul_(p)
        z.scatter_add_(-1, targets[rows].unsqueeze(-1), g)
        if steepness is not None:
            z.mul_(steepness)
        result[rows] = _through_head(z, head, raw)
    return result


def _logits(hidden: Tensor, head: _Head, raw: Tensor, out: Tensor) -> Tensor:
    """Compute the final logits of one chunk into `out`."""
    out = _product(hidden, head, raw, out)
    inner, outer = head.factors
    return _scale(out, inner) if outer is None else _scale(_scale(out, inner).tanh_(), outer)


def _product(hidden: Tensor, head: _Head, raw: Tensor, out: Tensor) -> Tensor:
    """Compute hidden W^T + bias of one chunk into `out`, by way of `raw`, which has the weight's dtype.

    Where the product can be summed and given in float32 it is: logits of 16 to 32 that were rounded to bfloat16 on the
    way would be wrong by 0.04 nats each.
    """
    raw, out = raw[: hidden.shape[0]], out[: hidden.shape[0]]
    with torch.autocast(hidden.device.type, enabled=False):
        rows = hidden.to(head.weight.dtype)
        if head.weight.dtype != head.dtype and head.sums_in_full:
            torch.mm(rows, head.weight.t(), out_dtype=head.dtype, out=out)
            if head.bias is not None:
                out.add_(head.bias)
            raw = out
        elif head.bias is None:
            torch.mm(rows, head.weight.t(), out=raw)
        else:
            torch.addmm(head.bias.to(raw.dtype), rows, head.weight.t(), out=raw)
    if raw.dtype != out.dtype:
        out.copy_(raw)
    return out


def _softcap_slope(z: Tensor, head: _Head, room: Tensor | None) -> Tensor | None:
    """Compute the derivative of the soft cap from capped logits: 1 - tanh^2 = 1 - (z temperature / cap)^2."""
    if head.softcap is None or room is None:
        return None
    slope = torch.mul(z, z, out=room[: z.shape[0]])
    return slope.mul_(-((head.temperature / head.softcap) ** 2)).add_(1.0)


def _through_head(grad: Tensor, head: _Head, raw: Tensor) -> Tensor:
    """Carry the gradient in a chunk of logits to its hidden states [chunk, H]."""
    if raw.dtype != grad.dtype:
        grad = raw[: grad.shape[0]].copy_(grad)
    with torch.autocast(grad.device.type, enabled=False):
        return _scale(grad @ head.weight, head.scale / head.temperature)


def _scale(x: Tensor, factor: float) -> Tensor:
    """Multiply in place, unless there is nothing to do."""
    return x if factor == 1.0 else x.mul_(factor)


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError(
            "the head requires gradients, which chunked log-probabilities do not give: freeze it"
        )
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        shapes = f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"hidden states and head must be [N, H] and [V, H]; got {shapes}")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"targets must be [{hidden.shape[0]}], one for each hidden state; got {tuple(targets.shape)}"
        )
