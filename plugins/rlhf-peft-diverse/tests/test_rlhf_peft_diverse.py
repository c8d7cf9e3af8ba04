import pytest
import torch
from rlhf_peft_diverse import Diverse, DiverseOptions, distance, spread

from rlhf_peft.plugin import Request, SamplerError, SamplingParams
from rlhf_peft.testing import FakePolicy, check_sampler, make_requests

POLICY = FakePolicy()


@pytest.mark.parametrize("options", [{}, {"candidates": 1}, {"candidates": 3, "max_rows": 5, "ngram": 1}])
def test_it_keeps_the_rules_of_samplers(options):
    check_sampler(Diverse, options)


def sample(requests, **options):
    sampler = Diverse(DiverseOptions(**options))
    sampler.sync(POLICY, 1)
    return sampler.sample(requests)


def test_the_farthest_are_kept_by_hand():
    rows = [[1, 2, 3], [1, 2, 3], [1, 2, 9], [7, 8]]
    assert distance(frozenset("ab"), frozenset("bc")) == pytest.approx(1 - 1 / 3)
    assert spread(rows, 3, n=2) == [0, 3, 2]


def test_completions_of_a_prompt_differ_more_than_plain_draws():
    def nearest(rollout):
        sets = [frozenset(rollout.completion_ids(i)) for i in range(len(rollout))]
        pairs = [(i, j) for i in range(len(sets)) for j in range(i) if rollout.group[i] == rollout.group[j]]
        return sum(distance(sets[i], sets[j]) for i, j in pairs) / len(pairs)

    asked = make_requests(24, per_group=4, params=SamplingParams(6))
    assert nearest(sample(asked, candidates=8, ngram=1)) > nearest(sample(asked, candidates=1)) + 0.05


def test_its_logps_are_the_policys_at_the_temperature():
    rollout = sample(make_requests(params=SamplingParams(8, temperature=0.7)), candidates=2)
    for ids, mask, logps in zip(rollout.input_ids, rollout.action_mask, rollout.sampler_logps, strict=True):
        assert torch.allclose(POLICY.logps(ids, 0.7)[mask], logps[mask], atol=1e-4)


def test_a_prompt_without_room_is_refused():
    with pytest.raises(SamplerError, match="no room"):
        sample([Request(torch.full((64,), 2), 0, 1, SamplingParams(4))])
