"""Statistics over the real positions of padded tensors.

A mask is boolean and may have several spans a row. Whatever stands outside it, NaN and infinity included,
never reaches a result: positions are chosen with `torch.where`, not weighted with zeros. Statistics of
half-precision, integer and boolean inputs are taken in float32, where counts above 256 are exact.

Left out on purpose: compensated summation and running statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """Return `x` as float32, or as it is when it already is float32 or float64.

    Args:
        x: any shape, any real dtype.

    Returns:
        The same values, same shape, float32 or float64.
    """
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum over the real positions.

    sum_{i: mask_i} x_i

    Args:
        x: values, any shape.
        mask: boolean, broadcastable to `x`; True at real positions.
        dim: the dimension to sum over; None sums over all.

    Returns:
        Scalar, or `x` without `dim`; 0 where nothing is real.
    """
    masked = torch.where(mask, full_precision(x), 0.0)
    return masked.sum() if dim is None else masked.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean over the real positions.

    sum_{i: mask_i} x_i / sum_i mask_i

    Args:
        x: values, any shape.
        mask: boolean, broadcastable to `x`; True at real positions.
        dim: the dimension to average over; None averages over all.

    Returns:
        Scalar, or `x` without `dim`; NaN where nothing is real, as `Tensor.mean` of nothing is.
    """
    return masked_sum(x, mask, dim) / _count(x, mask, dim)


def masked_var(x: Tensor, mask: Tensor, dim: int | None = None, *, unbiased: bool = True) -> Tensor:
    """Variance over the real positions, in two passes.

    sum_{i: mask_i} (x_i - mean)^2 / (n - 1 if unbiased else n)

    Args:
        x: values, any shape.
        mask: boolean, broadcastable to `x`; True at real positions.
        dim: the dimension to take the variance over; None takes it over all.
        unbiased: divide by n - 1 (Bessel) and not by n.

    Returns:
        Scalar, or `x` without `dim`; NaN where too few positions are real (2 if unbiased, else 1).
    """
    mean = masked_mean(x, mask, dim)
    centred = full_precision(x) - (mean if dim is None else mean.unsqueeze(dim))
    return masked_sum(centred.square(), mask, dim) / (_count(x, mask, dim) - int(unbiased))


def whiten(x: Tensor, mask: Tensor, *, keep_mean: bool = False, eps: float = 1e-8) -> Tensor:
    """Scale the real positions to unit variance, and shift them to mean zero unless `keep_mean`.

    (x - mean) / sqrt(var + eps) [+ mean if keep_mean], with the unbiased variance (divided by n - 1)

    Ziegler et al. 2019 (code, `utils.core.whiten`): advantages are whitened to mean zero, rewards keep their
    mean. They divide by n; TRL's PPO by n - 1, as here.

    Args:
        x: [B, T] values.
        mask: [B, T] boolean; True at real positions.
        keep_mean: add the mean back, so that only the spread changes.
        eps: added to the variance; a constant input becomes its mean (or zero), never NaN.

    Returns:
        [B, T]; 0 outside the mask.
    """
    mean = masked_mean(x, mask)
    variance = masked_var(x, mask, unbiased=int(mask.expand_as(x).sum()) > 1)
    scaled = (full_precision(x) - mean) * torch.rsqrt(variance + eps)
    return torch.where(mask, scaled + mean if keep_mean else scaled, 0.0)


def last_index(mask: Tensor) -> Tensor:
    """Find the last real position of every row.

    max {t : mask[b, t]}

    Args:
        mask: [B, T] boolean; True at real positions, holes allowed.

    Returns:
        [B] int64 positions.

    Raises:
        ValueError: a row has no real position.
    """
    if not bool(mask.any(-1).all()):
        empty = (~mask.any(-1)).nonzero().flatten().tolist()
        raise ValueError(f"rows {empty} of the mask have no real position, so no last one")
    positions = torch.arange(mask.shape[-1], device=mask.device)
    return torch.where(mask, positions, -1).amax(-1)


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Share of the variance of the returns that the values predict.

    1 - Var[returns - values] / Var[returns]

    CleanRL, `losses/explained_variance`. 1 is perfect, 0 is no better than a constant, below 0 is worse.

    Args:
        returns: [B, T] targets of the value function, in reward units.
        values: [B, T] predictions, in reward units.
        mask: [B, T] boolean; True at real positions.

    Returns:
        Scalar; NaN when the returns do not vary.
    """
    variance = masked_var(returns, mask, unbiased=False)
    residual = masked_var(full_precision(returns) - full_precision(values), mask, unbiased=False)
    return torch.where(variance > 0, 1.0 - residual / variance, torch.nan)


def weighted_sum(terms: Tensor, weights: Tensor) -> Tensor:
    """Sum the terms of a loss with their weights; a weight of zero silences even a term that is not finite.

    sum_{i: w_i != 0} w_i x_i

    Args:
        terms: per-token or per-row terms, any shape.
        weights: same shape, as `token_weights` gives them.

    Returns:
        Scalar.
    """
    return (torch.where(weights != 0, full_precision(terms), 0.0) * weights).sum()


def _count(x: Tensor, mask: Tensor, dim: int | None) -> Tensor:
    """Count the real positions as floats of the precision that the statistics have."""
    real = mask.expand_as(x)
    return (real.sum() if dim is None else real.sum(dim)).to(full_precision(x).dtype)
