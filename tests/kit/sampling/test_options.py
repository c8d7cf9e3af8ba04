"""The options that every sampler shares."""

import pytest

from rlhf_peft.errors import RecipeError
from rlhf_peft.plugin import SamplingParams
from rlhf_peft.recipe import load
from rlhf_peft.registry import Registry

SAMPLERS = ["cached", "hf", "vllm_server"]


@pytest.fixture(scope="module")
def registry():
    return Registry.load(no_plugins=True)


def sampler(name, stop, registry):
    more = ", url: 'http://localhost:8000', adapter_dir: /tmp" if name == "vllm_server" else ""
    load("quickstart", [f"stages.rl.sampler={{name: {name}, stop: {stop}{more}}}"], plugins=registry)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("stop", ['[""]', '["a", ""]', "[null]"])
def test_a_stop_string_that_is_empty_is_refused_with_the_recipe(name, stop, registry):
    with pytest.raises(
        RecipeError, match=r"stages\.rl\.sampler\.stop\[[01]\]: (an empty string|expected text)"
    ):
        sampler(name, stop, registry)


@pytest.mark.parametrize(
    "of", ["{name: cached, stop: [x, '']}", "{name: best_of_n, of: {name: hf, stop: ['']}}"]
)
def test_so_is_one_of_the_sampler_that_best_of_n_wraps(of, registry):
    with pytest.raises(RecipeError, match=r"stages\.rl\.sampler\.of.*stop\.[01]: an empty string"):
        load("quickstart", [f"stages.rl.sampler={{name: best_of_n, of: {of}}}"], plugins=registry)


def test_space_may_end_a_completion(registry):
    sampler("cached", '["\\n", " "]', registry)


@pytest.mark.parametrize("stop", [("",), ("a", ""), (None,), (3,)])
def test_nor_can_a_plugin_ask_for_one(stop):
    with pytest.raises(ValueError, match=r"stop holds .*; expected text that is not empty"):
        SamplingParams(8, stop=stop)
