"""Statistics of text and of predictions, for reports.

Left out on purpose: confidence intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .masked import full_precision


def distinct_n(sequences: Sequence[Sequence[int]], n: int) -> float:
    """Measure diversity as the share of n-grams that are distinct, over all sequences together.

    |{n-grams}| / number of n-grams

    Li et al. 2016, arXiv:1510.03055 (distinct-1, distinct-2).

    Args:
        sequences: token ids of each completion, without padding.
        n: length of the n-grams, at least 1.

    Returns:
        Between 0 and 1; 0 when no sequence has n tokens.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n-grams of length {n} do not exist; n must be at least 1")
    grams = [tuple(ids[i : i + n]) for ids in sequences for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def expected_calibration_error(probabilities: Tensor, outcomes: Tensor, bins: int = 10) -> float:
    """Measure how far predicted probabilities are from the frequencies that came true.

    sum_b |B_b| / N * |mean outcome in B_b - mean probability in B_b|

    over `bins` equal intervals of [0, 1]; 1 belongs to the last. Naeini et al. 2015; Guo et al. 2017,
    arXiv:1706.04599, equation 3.

    Args:
        probabilities: [N] predicted probability that the outcome is 1.
        outcomes: [N] 0 or 1, boolean, or a share in between.
        bins: number of intervals, at least 1.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: shapes differ, there is no prediction, a probability is outside [0, 1], or `bins` is below
            1.
    """
    if probabilities.ndim != 1 or probabilities.shape != outcomes.shape or not probabilities.numel():
        shapes = f"{tuple(probabilities.shape)} and {tuple(outcomes.shape)}"
        raise ValueError(f"probabilities and outcomes must both be [N] with N > 0; got {shapes}")
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1")
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise ValueError("a probability is outside [0, 1]")
    probability = full_precision(probabilities.detach())
    index = (probability * bins).long().clamp(max=bins - 1)
    gap = full_precision(outcomes) - probability
    return float(gap.new_zeros(bins).index_add(0, index, gap).abs().sum() / gap.numel())
