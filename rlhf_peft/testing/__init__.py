"""Conformance checks and test doubles for plugin authors; they run on a CPU in seconds.

    from rlhf_peft.testing import check_reward

    def test_it_keeps_the_rules():
        check_reward(Short, {"per_token": 0.1})

A check raises `ConformanceError` (an AssertionError) that says which rule was broken and by what. With pytest, the
fixtures `fake_policy`, `reward_batch`, `fake_context` and `fake_run` are there as soon as this package is installed.

The checks do not say whether a reward rewards the right thing, or whether an algorithm learns. Test that yourself.
"""

from .algorithms import check_algorithm
from .datasets import check_dataset
from .doubles import (
    FakePolicy,
    FakePrompt,
    FakeRequestContext,
    FakeRun,
    FakeSampleContext,
    make_batch,
    make_requests,
    make_reward_batch,
    make_rollout,
)
from .environments import check_environment
from .plugins import Finding, check_plugin
from .quantizers import check_quantizer
from .rewards import check_reward
from .rules import ConformanceError
from .samplers import check_sampler

__all__ = [
    "ConformanceError",
    "FakePolicy",
    "FakePrompt",
    "FakeRequestContext",
    "FakeRun",
    "FakeSampleContext",
    "Finding",
    "check_algorithm",
    "check_dataset",
    "check_environment",
    "check_plugin",
    "check_quantizer",
    "check_reward",
    "check_sampler",
    "make_batch",
    "make_requests",
    "make_reward_batch",
    "make_rollout",
]
