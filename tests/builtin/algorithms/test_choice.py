"""Algorithms that learn from which completion is the best: online DPO and rejection sampling."""

import math

import torch

from rlhf_peft.builtin.algorithms import OnlineDpo, RejectionSampling
from rlhf_peft.plugin import Outputs

from .rollouts import minibatch, scored


def prepared(algorithm, data):
    data.train = algorithm.select(data, 0).train
    data.columns, figures = algorithm.prepare(data)
    return data.columns, figures


def kept(algorithm, data):
    return algorithm.select(data, 0).train.nonzero().flatten().tolist()


def test_a_pair_is_the_best_and_the_worst_of_a_group():
    data = scored([0.0, 2.0, 1.0, 5.0, math.nan, 3.0], [0, 0, 0, 1, 1, 1])
    algorithm = OnlineDpo(OnlineDpo.Options())
    assert kept(algorithm, data) == [0, 1, 3, 5]
    columns, figures = prepared(algorithm, data)
    assert columns["best"].nonzero().flatten().tolist() == [1, 3]
    assert figures == {"pairs": 2.0, "scores/margin": 2.0}
    assert torch.equal(algorithm.minibatch_units(data), data.rollout.group)


def test_a_group_that_says_nothing_is_left_out():
    data = scored([1.0, 1.0, math.nan, 2.0], [0, 0, 1, 1])
    assert kept(OnlineDpo(OnlineDpo.Options()), data) == []


def test_label_smoothing_pulls_the_other_way():
    data = scored([0.0, 2.0], [0, 0])
    logps = data.old_logps.clone().requires_grad_()
    losses = []
    for smoothing in (0.0, 0.4):
        algorithm = OnlineDpo(OnlineDpo.Options(label_smoothing=smoothing))
        columns, _ = prepared(algorithm, data)
        terms, _ = algorithm.loss(Outputs(logps), minibatch(data, columns))
        losses.append(torch.autograd.grad(terms.sum(), logps)[0].abs().sum())
    assert 0 < losses[1] < 0.5 * losses[0]


def test_rejection_sampling_keeps_the_best_that_are_good_enough():
    data = scored([0.0, 2.0, 1.0, 5.0, math.nan, 3.0], [0, 0, 0, 1, 1, 1])
    assert kept(RejectionSampling(RejectionSampling.Options()), data) == [1, 3]
    assert kept(RejectionSampling(RejectionSampling.Options(keep=2)), data) == [1, 2, 3, 5]
    assert kept(RejectionSampling(RejectionSampling.Options(keep=2, min_score=2.5)), data) == [3, 5]


def test_rejection_sampling_is_cross_entropy_on_what_was_kept():
    data = scored([0.0, 2.0], [0, 0])
    algorithm = RejectionSampling(RejectionSampling.Options())
    batch = minibatch(data, {}, [1])
    logps = data.old_logps[[1]].clone().requires_grad_()
    terms, _ = algorithm.loss(Outputs(logps), batch)
    weights = algorithm.weights(batch)
    gradient = torch.autograd.grad((terms * weights).sum(), logps)[0]
    assert torch.equal(gradient[0], torch.where(data.mask[1], -0.5, 0.0))
