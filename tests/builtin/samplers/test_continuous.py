"""`continuous` gives what `cached` gives, and refuses what it cannot do."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_peft.builtin.samplers.cached import CachedOptions, CachedSampler
from rlhf_peft.builtin.samplers.continuous import ContinuousOptions, ContinuousSampler
from rlhf_peft.plugin import Request, SamplerError, SamplingParams

from .support import MIXED, ModelView, completions, requests


def made(view, kind=ContinuousSampler, **options):
    sampler = kind(kind.Options(**options))
    sampler.sync(view, 3)
    return sampler


@pytest.mark.parametrize(("stop", "truncations"), [((), ({},)), ((), MIXED), (("he", "a b"), ({},))])
def test_it_writes_what_cached_writes(tiny_base, view, stop, truncations):
    some = requests(tiny_base.tokenizer, 20, stop=stop, truncations=truncations)
    theirs = made(view, CachedSampler).sample(some)
    ours = made(view, max_rows=6, page_size=16).sample(some)
    assert completions(ours) == completions(theirs) and ours.finish == theirs.finish
    assert ("stop" in ours.finish) == bool(stop)
    for left, right in zip(ours.sampler_logps, theirs.sampler_logps, strict=True):
        assert torch.allclose(left, right, atol=1e-4)


def test_a_row_depends_on_its_seed_alone(tiny_base, view):
    some = requests(tiny_base.tokenizer, 6, truncations=MIXED)
    together = completions(made(view).sample(some))
    assert together == completions(made(view, max_rows=2).sample(some[::-1]))[::-1]


def test_the_model_is_as_it_was(tiny_base, view):
    attention, own = tiny_base.lm.config._attn_implementation, tiny_base.lm.generation_config
    made(view).sample(requests(tiny_base.tokenizer, 2))
    assert tiny_base.lm.config._attn_implementation == attention
    assert tiny_base.lm.generation_config is own
    assert not hasattr(tiny_base.lm, "_cached_continuous_batching_manager")


def test_torchs_global_stream_is_left_alone(tiny_base, view):
    before = torch.get_rng_state()
    made(view).sample(requests(tiny_base.tokenizer, 2))
    assert torch.equal(before, torch.get_rng_state())


def test_models_with_a_state_are_sent_to_hf():
    config = AutoConfig.for_model("mamba", vocab_size=300, hidden_size=32, num_hidden_layers=1, state_size=4)
    sampler = made(ModelView(AutoModelForCausalLM.from_config(config).eval()))
    with pytest.raises(SamplerError, match=r"MambaForCausalLM cannot .* sampler.name=hf"):
        sampler.sample([Request(torch.tensor([3, 4]), 0, 1, SamplingParams(4))])


def test_a_failure_inside_transformers_is_told_with_advice(tiny_base, view, monkeypatch):
    monkeypatch.setattr(tiny_base.lm.__class__, "forward", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(SamplerError, match=r"sampler continuous: .*sampler.name=cached"):
        made(view).sample(requests(tiny_base.tokenizer, 2))


def test_what_cannot_be_prepared_is_told_with_advice(tiny_base, view, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("no pages")

    monkeypatch.setattr(tiny_base.lm.__class__, "init_continuous_batching", refuse)
    with pytest.raises(
        SamplerError, match=r"could not be prepared: ValueError: no pages Use sampler.name=cached"
    ):
        made(view).sample(requests(tiny_base.tokenizer, 2))


def test_its_defaults_are_cacheds():
    assert ContinuousSampler(ContinuousOptions()).params == CachedSampler(CachedOptions()).params
