"""`best_of_n` keeps the completion that the rewards like best."""

import dataclasses

import pytest
import torch

from rlhf_peft.builtin.samplers.best_of_n import BestOfNOptions, BestOfNSampler, best, candidates, seed
from rlhf_peft.builtin.samplers.cached import CachedSampler
from rlhf_peft.kit.sampling import LocalOptions
from rlhf_peft.plugin import SamplerError
from rlhf_peft.registry import Registry

from .support import completions, requests

NAN = float("nan")


class Scoring:
    """A context that scores a row by a function of its completion."""

    def __init__(self, score):
        self._score, self.seen = score, None

    def score(self, rollout):
        self.seen = rollout
        return torch.tensor([float(self._score(ids)) for ids in completions(rollout)])


def made(view, n=4, **of):
    sampler = BestOfNSampler(BestOfNOptions.model_validate({"n": n, "of": of}))
    sampler.sync(view, 2)
    return sampler


@pytest.mark.parametrize("name", ["cached", "hf"])
def test_it_keeps_the_best_of_each_request(tiny_base, view, name):
    some = requests(tiny_base.tokenizer, 6)
    context = Scoring(sum)
    rollout = made(view, name=name).sample(some, context)
    drawn = completions(context.seen)
    assert len(drawn) == 24 and len({tuple(ids) for ids in drawn}) > 12
    for i, kept in enumerate(completions(rollout)):
        assert sum(kept) == max(map(sum, drawn[4 * i : 4 * i + 4])) and kept in drawn[4 * i : 4 * i + 4]
    assert rollout.group.tolist() == [request.group for request in some]
    assert rollout.version == 2 and len(rollout.sampler_logps) == 6


def test_the_first_candidate_is_the_row_itself(tiny_base, view):
    some = requests(tiny_base.tokenizer, 6)
    plain = CachedSampler(LocalOptions())
    plain.sync(view, 2)
    expected = completions(plain.sample(some))
    assert completions(made(view, n=1).sample(some, Scoring(len))) == expected
    assert completions(made(view).sample(some, Scoring(lambda ids: NAN))) == expected


def test_seeds_differ_and_stay_where_they_are():
    seeds = [seed(base, i) for base in (0, 1, 2**62) for i in range(50)]
    assert len(set(seeds)) == 150 and max(seeds) < 2**63
    assert seed(7, 0) == 7 and seed(7, 3) == seed(7, 3)


def test_a_greedy_row_is_drawn_once(tiny_base, view):
    some = requests(tiny_base.tokenizer, 2)
    greedy = dataclasses.replace(some[0], params=dataclasses.replace(some[0].params, temperature=0.0))
    assert len(candidates(greedy, 5)) == 1 and len(candidates(some[1], 5)) == 5
    context = Scoring(len)
    assert len(made(view, n=5).sample([greedy, some[1]], context)) == 2
    assert len(context.seen) == 6


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([1.0, 3.0, 2.0], 1),
        ([2.0, 2.0, 1.0], 0),
        ([NAN, -5.0, NAN], 1),
        ([NAN, NAN, NAN], 0),
        ([NAN, -float("inf"), -9.0], 2),
        ([1.0, float("inf"), NAN], 1),
    ],
)
def test_nan_never_wins_unless_all_are(scores, kept):
    assert best(torch.tensor([0.0, *scores]), [1, 3]) == [0, 1 + kept]


def test_without_rewards_it_says_why(tiny_base, view):
    with pytest.raises(SamplerError, match=r"no rewards to choose by.*sampler.name=cached"):
        made(view).sample(requests(tiny_base.tokenizer, 1))


def test_scores_of_another_shape_are_refused(tiny_base, view):
    context = Scoring(len)
    context.score = lambda rollout: torch.zeros(len(rollout) - 1)
    with pytest.raises(SamplerError, match=r"\(3,\) scores for 4"):
        made(view).sample(requests(tiny_base.tokenizer, 1), context)


def test_it_promises_no_more_than_it_keeps():
    sampler = BestOfNSampler(BestOfNOptions())
    assert sampler.provides == {"logps"} and sampler.params == CachedSampler(LocalOptions()).params


def test_the_inner_options_come_from_the_recipe():
    registry = Registry.load(no_plugins=True)
    sampler = registry.make("samplers", "best_of_n", {"n": 2, "of": {"name": "hf", "top_p": 0.5}})
    assert sampler.params.top_p == 0.5 and type(sampler.inner).__name__ == "HfSampler"
    with pytest.raises(SamplerError, match=r"unknown sampler 'cache'. Known: best_of_n, cached, "):
        BestOfNSampler(BestOfNOptions.model_validate({"of": {"name": "cache"}}))


def test_what_wraps_is_given_the_registrys_make():
    asked = []

    def make(kind, name, options):
        asked.append((kind, name, options))
        return CachedSampler(LocalOptions(**options))

    options = BestOfNOptions.model_validate({"of": {"name": "theirs", "max_new_tokens": 9}})
    assert BestOfNSampler(options, make=make).params.max_new_tokens == 9
    assert asked == [("samplers", "theirs", {"max_new_tokens": 9})]
