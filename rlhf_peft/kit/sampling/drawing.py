"""Draws tokens by the inverse CDF, from one uniform number for each row and token.

A draw depends on its own row alone, whatever the other rows of the batch. Letters: B rows, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...types import SamplingParams
from ..upload import upload

BELOW_ONE = 1.0 - 2.0**-24
"""The largest float32 below 1: times any total it stays below that total."""


def uniforms(seed: int, count: int) -> Tensor:
    """The random numbers of a row, [count] float32 in [0, 1); a longer stream begins with the shorter one."""
    stream = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return stream.float()


@dataclass(frozen=True, slots=True)
class DrawOptions:
    """The sampling parameters of the rows of a batch.

    Attributes:
        temperature: [B]; logits are divided by it, 0 takes the most likely token.
        top_p: [B], 1 keeps all.
        top_k: [B] int64, V keeps all.
        min_p: [B], 0 keeps all.
        which: rows that are truncated, [R] int64; None where no row is.
        plain: every temperature is 1.
        greedy: some temperature is 0.
    """

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    min_p: Tensor
    which: Tensor | None = None
    plain: bool = False
    greedy: bool = True

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device | str = "cpu") -> DrawOptions:
        """The options of rows with these parameters."""
        which = [i for i, p in enumerate(params) if p.truncated]
        every = torch.iinfo(torch.int64).max
        return cls(
            upload(torch.tensor([p.temperature for p in params], dtype=torch.float32), device),
            upload(torch.tensor([p.top_p for p in params], dtype=torch.float32), device),
            upload(torch.tensor([p.top_k or every for p in params], dtype=torch.int64), device),
            upload(torch.tensor([p.min_p for p in params], dtype=torch.float32), device),
            upload(torch.tensor(which, dtype=torch.int64), device) if which else None,
            all(p.temperature == 1 for p in params),
            any(p.temperature == 0 for p in params),
        )


def truncate(logps: Tensor, top_p: Tensor, top_k: Tensor, min_p: Tensor) -> Tensor:
    """Log-probabilities renormalised on the tokens that are kept; -inf elsewhere.

    First the `top_k` likeliest; of these the fewest whose share of what is left reaches `top_p` (Holtzman et al. 2020);
    of these the ones with p >= min_p * max p (Nguyen et al. 2024). The likeliest token always stays; of equally likely
    ones the lower ids stay.

    Args:
        logps: [B, V], normalised.
        top_p: [B].
        top_k: [B] int64.
        min_p: [B].

    Returns:
        [B, V] float32.
    """
    ranked, order = logps.sort(dim=-1, descending=True, stable=True)
    probs = ranked.exp()
    keep = torch.arange(logps.shape[-1], device=logps.device) < top_k.unsqueeze(-1)
    left = probs * keep
    before = left.cumsum(-1) - left
    keep &= (before < top_p.unsqueeze(-1) * left.sum(-1, keepdim=True)) | (top_p == 1).unsqueeze(-1)
    keep &= probs >= min_p.unsqueeze(-1) * probs[:, :1]
    keep[:, 0] = True
    keep_ids = torch.zeros_like(keep).scatter_(-1, order, keep)
    return torch.log_softmax(logps.masked_fill(~keep_ids, -torch.inf), dim=-1)


def distribution(logits: Tensor, options: DrawOptions) -> Tensor:
    """The log-probabilities of the distribution that is drawn from, [B, V] float32."""
    scaled = logits.float()
    if not options.plain:
        scaled = scaled / torch.where(options.temperature == 0, 1.0, options.temperature).unsqueeze(-1)
    logps = torch.log_softmax(scaled, dim=-1)
    rows = options.which
    if rows is not None:
        logps[rows] = truncate(logps[rows], options.top_p[rows], options.top_k[rows], options.min_p[rows])
    return logps


def draw(logits: Tensor, uniforms: Tensor, options: DrawOptions) -> tuple[Tensor, Tensor]:
    """Draw one token for each row: the first whose cumulative probability exceeds u.

    Args:
        logits: [B, V].
        uniforms: [B] in [0, 1).
        options: how each row is drawn; where the temperature is 0, the most likely token is taken.

    Returns:
        tokens [B] int64, and their log-probabilities [B] float32 under the distribution that was drawn from.
    """
    logps = distribution(logits, options)
    cdf = logps.exp().cumsum(-1)
    u = uniforms.to(cdf.dtype).clamp(max=BELOW_ONE).unsqueeze(-1)
    tokens = torch.searchsorted(cdf, u * cdf[:, -1:], right=True).squeeze(-1)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)
    likeliest = logits.argmax(-1) if options.greedy or options.which is not None else tokens
    if options.which is not None:
        # Logits that differ by a rounding error may be equally likely, and truncation may have kept another of them.
        is_kept = logps.gather(-1, likeliest.unsqueeze(-1)).squeeze(-1) > -torch.inf
        likeliest = torch.where(is_kept, likeliest, logps.argmax(-1))
    tokens = torch.where(options.temperature == 0, likeliest, tokens)
    chosen = logps.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    if options.which is None:
        return tokens, chosen
    # The rounding of a parallel sum may select a token without probability.
    outside = chosen == -torch.inf
    top = logps.gather(-1, likeliest.unsqueeze(-1)).squeeze(-1)
    return torch.where(outside, likeliest, tokens), torch.where(outside, top, chosen)
