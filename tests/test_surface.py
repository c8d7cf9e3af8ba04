"""The names that third parties import stay: a name goes only after it has been deprecated."""

import warnings

import pytest

from rlhf_peft import plugin, testing

PLUGIN = [
    "BASELINE",
    "HOOK_API",
    "Algorithm",
    "AlgorithmBase",
    "AlgorithmOptions",
    "Batch",
    "DataError",
    "Dataset",
    "Finish",
    "GuardError",
    "Minibatch",
    "ModelError",
    "LoadCode",
    "Options",
    "Outputs",
    "PluginError",
    "PolicyGradient",
    "PolicyOptions",
    "PolicyView",
    "Prompt",
    "Register",
    "Quantizer",
    "QuantizerBase",
    "Request",
    "RequestContext",
    "Reward",
    "RewardBatch",
    "RewardError",
    "RlhfPeftError",
    "Rollout",
    "RunView",
    "SampleContext",
    "Sampler",
    "SamplerError",
    "SamplingParams",
    "Scores",
    "Selection",
    "UsageError",
    "hookimpl",
    "linear_sizes",
    "maths",
]
TESTING = [
    "ConformanceError",
    "FakePolicy",
    "FakePrompt",
    "FakeRequestContext",
    "FakeRun",
    "FakeSampleContext",
    "Finding",
    "check_algorithm",
    "check_dataset",
    "check_plugin",
    "check_quantizer",
    "check_reward",
    "check_sampler",
    "make_batch",
    "make_requests",
    "make_reward_batch",
    "make_rollout",
]


@pytest.mark.parametrize(("module", "names"), [(plugin, PLUGIN), (testing, TESTING)])
def test_the_surface_does_not_shrink(module, names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert [name for name in names if not hasattr(module, name)] == []
    assert sorted(set(names) - set(module.__all__)) == []
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
