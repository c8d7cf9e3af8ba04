"""Statistics of text and of predictions, for reports."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
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


def bootstrap_interval(
    values: Tensor, generator: torch.Generator, *, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Interval of a mean by the percentile bootstrap.

    The quantiles (1 - level) / 2 and (1 + level) / 2 of the means of `draws` samples of N values, drawn with
    replacement. Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

    Args:
        values: [N].
        generator: of the draws.
        level: share of draws inside, between 0 and 1.
        draws: how many samples.

    Returns:
        Both ends; the value twice where N is 1.

    Raises:
        ValueError: there is no value, or the level is not between 0 and 1.
    """
    if values.ndim != 1 or not values.numel():
        raise ValueError(f"values must be [N] with N > 0; got {tuple(values.shape)}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}; it must be between 0 and 1")
    exact = values.detach().double().cpu()
    picked = torch.randint(len(exact), (draws, len(exact)), generator=generator)
    low, high = exact[picked].mean(1).quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2]).double())
    return float(low), float(high)


def reliability(
    margins: Sequence[float], labels: Sequence[float], bins: int = 8
) -> list[tuple[float, float, int]]:
    """How often a Bradley-Terry model was right, by how sure it was.

    A pair with margin d = r_1 - r_2 is judged with confidence p = 1 / (1 + exp(-|d|)); pairs are put into bins of
    equal width over [0.5, 1]. A calibrated model is right in a share p of the pairs of each bin. Guo et al. 2017,
    arXiv:1706.04599, figure 1.

    Args:
        margins: [N] reward of the first answer minus that of the second.
        labels: [N] 1 where the first is better, 0 where the second is, or a share in between.
        bins: number of intervals, at least 1.

    Returns:
        Of each bin that has a pair: mean confidence, share in which it was right, number of pairs.

    Raises:
        ValueError: lengths differ, or `bins` is below 1.
    """
    if len(margins) != len(labels):
        raise ValueError(f"{len(margins)} margins and {len(labels)} labels")
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1")
    by_bin: dict[int, list[tuple[float, float]]] = {}
    for margin, label in zip(margins, labels, strict=True):
        sure = 1.0 / (1.0 + math.exp(-min(abs(margin), 700.0)))
        right = label if margin > 0 else 1.0 - label if margin < 0 else 0.5
        by_bin.setdefault(min(bins - 1, int((sure - 0.5) * 2 * bins)), []).append((sure, right))
    return [
        (
            sum(sure for sure, _ in pairs) / len(pairs),
            sum(right for _, right in pairs) / len(pairs),
            len(pairs),
        )
        for _, pairs in sorted(by_bin.items())
    ]
