"""What third parties import does not shrink; a name goes only by `rlhf_peft.deprecation`."""

import warnings

import pytest

from rlhf_peft import plugin, testing
from rlhf_peft.deprecation import Deprecated, deprecated_names

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


def test_a_deprecated_name_works_and_says_what_to_use():
    get = deprecated_names("rlhf_peft.plugin", {"Old": Deprecated(3, "0.9", "New")})
    with pytest.warns(
        DeprecationWarning,
        match=r"rlhf_peft\.plugin\.Old is deprecated since 0\.9 and goes in 0\.11\. Use New",
    ):
        assert get("Old") == 3
    with pytest.raises(AttributeError, match="has no attribute 'Older'"):
        get("Older")
