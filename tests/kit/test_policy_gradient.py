"""What all policy gradients share."""

import math

import pytest
import torch
from pydantic import ValidationError

from rlhf_peft.builtin.algorithms import Grpo
from rlhf_peft.plugin import AlgorithmBase, AlgorithmOptions, Batch, Outputs, PolicyGradient, PolicyOptions

from ..builtin.algorithms.rollouts import APrompt, Ask, minibatch, scored


class Plain(PolicyGradient):
    """The score is the advantage."""

    def advantages(self, batch, scores):
        return scores


def plain(**options):
    made = Plain(PolicyOptions(**options))
    made.requests([APrompt(0), APrompt(1)], Ask())
    return made


def prepared(algorithm, data):
    data.train = algorithm.select(data, 0).train
    return data.train, *algorithm.prepare(data)


def test_requests_have_seeds_of_their_own():
    asked = plain(num_generations=3).requests([APrompt(0), APrompt(1)], Ask())
    assert [r.group for r in asked] == [0, 0, 0, 1, 1, 1]
    assert len({r.seed for r in asked}) == 6


def test_without_beta_there_is_no_reference():
    assert plain().roles == ("policy",)
    assert plain(beta=0.1).roles == ("policy", "reference")


def test_a_beta_of_zero_cannot_adapt():
    with pytest.raises(ValidationError, match="would stay 0"):
        PolicyOptions(kl_target=6.0)


def test_truncated_completions_can_be_left_out():
    data = scored([1.0, 2.0, 3.0], finish=["eos", "length", "stop"])
    assert plain(mask_truncated_completions=True).select(data, 0).train.tolist() == [True, False, True]
    assert plain().select(data, 0).train.all()


def test_nearly_too_long_completions_are_penalised_linearly():
    data = scored([0.0, 0.0, 0.0], lengths=[4, 6, 8])
    _, columns, figures = prepared(plain(overlong_buffer=4, overlong_penalty=2.0), data)
    assert columns["advantages"].tolist() == [0.0, -1.0, -2.0]
    assert figures["overlong/mean"] == pytest.approx(1.0)


def test_the_entropy_bonus_pushes_towards_entropy():
    data = scored([0.0, 0.0, 0.0])
    entropy = torch.ones(data.mask.shape, requires_grad=True)
    algorithm = plain(entropy_coef=0.25)
    assert "entropy" in algorithm.needs
    terms, _ = algorithm.loss(
        Outputs(data.old_logps, None, entropy), minibatch(data, {"advantages": data.scores})
    )
    assert torch.equal(torch.autograd.grad(terms.sum(), entropy)[0], torch.full(data.mask.shape, -0.25))


def test_the_upper_clip_can_be_wider():
    data = scored([1.0, 1.0, 1.0])
    logps = data.old_logps + math.log(1.25)
    batch = minibatch(data, {"advantages": data.scores})
    narrow = plain(epsilon=0.2).loss(Outputs(logps), batch)[1]["clip_ratio/region_mean"]
    wide = plain(epsilon=0.2, epsilon_high=0.28).loss(Outputs(logps), batch)[1]["clip_ratio/region_mean"]
    assert narrow.all() and not wide.any()


def test_importance_weighs_the_policy_but_not_the_kl():
    data = scored([1.0, 1.0, 1.0])
    batch = minibatch(data, {"advantages": data.scores})
    batch.importance = torch.zeros(data.mask.shape)
    terms, _ = plain(beta=0.5).loss(Outputs(data.old_logps), batch)
    d = data.ref_logps - data.old_logps
    assert torch.allclose(terms, 0.5 * (d.exp() - 1 - d), atol=1e-6)


def test_without_old_log_probs_every_ratio_is_one():
    data = scored([2.0, -1.0, 0.5])
    batch = minibatch(data, {"advantages": data.scores})
    batch.old_logps = None
    logps = data.old_logps.clone().requires_grad_()
    terms, _ = plain().loss(Outputs(logps), batch)
    assert torch.allclose(terms, -data.scores.unsqueeze(-1).expand_as(terms))
    assert torch.allclose(torch.autograd.grad(terms.sum(), logps)[0], terms.detach())


# --- dynamic sampling ---


def groups(*scores):
    return scored([s for g in scores for s in g], [i for i, g in enumerate(scores) for _ in g])


def dapo(**options):
    made = Grpo(Grpo.Options(num_generations=2, dynamic_sampling=True, **options))
    made.requests([APrompt(0), APrompt(1)], Ask())
    return made


def test_groups_without_variance_are_replaced():
    algorithm, data = dapo(), groups([1.0, 1.0], [0.0, 1.0])
    first = algorithm.select(data, 0)
    assert first.more_prompts == 1
    more = Batch.cat([data, groups([0.0, 3.0], [2.0, 0.0])])
    assert more.rollout.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    second = algorithm.select(more, 1)
    assert second.more_prompts == 0
    assert second.train.tolist() == [False, False, True, True, True, True, False, False]
    more.train = second.train
    assert algorithm.prepare(more)[1]["dynamic_sampling/kept"] == 0.75


def test_sampling_ends_after_max_rounds():
    algorithm, data = dapo(max_rounds=2), groups([1.0, 1.0], [0.0, 1.0])
    assert algorithm.select(data, 0).more_prompts == 1
    last = algorithm.select(data, 1)
    assert last.more_prompts == 0 and last.train.tolist() == [False, False, True, True]


def test_where_no_group_tells_anything_the_step_goes_on_with_zeros():
    algorithm, data = dapo(max_rounds=1), groups([1.0, 1.0], [2.0, 2.0])
    train, columns, _ = prepared(algorithm, data)
    assert train.all() and not columns["advantages"].any()


def test_dynamic_sampling_needs_groups():
    with pytest.raises(ValidationError, match="num_generations"):
        PolicyOptions(dynamic_sampling=True)


def test_joined_rollouts_keep_their_rows():
    short, long = scored([1.0], lengths=[2], seed=1), scored([2.0, 3.0], [0, 0], lengths=[5, 4], seed=2)
    both = Batch.cat([short, long])
    assert both.mask.shape == (3, 7) and both.rollout.group.tolist() == [0, 1, 1]
    assert torch.equal(both.old_logps[1:], long.old_logps)
    assert torch.equal(both.old_logps[0, :4], short.old_logps[0])
    back = both.rows([1, 2])
    assert torch.equal(back.mask, long.mask) and back.scores.tolist() == [2.0, 3.0]


def test_the_base_alone_is_an_algorithm_without_options_of_its_own():
    base = AlgorithmBase(AlgorithmOptions(num_epochs=2))
    data = scored([1.0, math.nan, 2.0])
    assert base.epochs == 2 and base.select(data, 0).train.tolist() == [True, False, True]
    assert base.state_dict() == {} and base.step_end({}) == {}
