"""A model is called by the names that its own forward has, whichever release of transformers it is from."""

import functools
import inspect
import types

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from rlhf_peft.builtin.quantizers.compat import disable_bf16_cpu_kernels
from rlhf_peft.builtin.samplers.cached import CachedSampler
from rlhf_peft.engine.compat import CACHE_KEYWORDS, cache_keyword
from rlhf_peft.engine.fast.shared_prefix import share
from rlhf_peft.kit.sampling import LocalOptions
from rlhf_peft.plugin import Request, SamplingParams
from tests.builtin.samplers.support import ModelView, completions

from ..support import config, load, tokens


def with_cache_named(keyword, forward):
    """A forward that takes its cache under this keyword alone, whatever the given one calls it."""
    theirs = next(name for name in CACHE_KEYWORDS if name in inspect.signature(forward).parameters)
    (other,) = set(CACHE_KEYWORDS) - {keyword}

    def call(self, kwargs):
        assert other not in kwargs, f"{type(self).__name__}.forward has no argument {other}"
        if keyword in kwargs:
            kwargs[theirs] = kwargs.pop(keyword)
        return forward(self, **kwargs)

    def old(self, input_ids=None, past_key_values=None, logits_to_keep=0, **kwargs):
        given = {"input_ids": input_ids, "past_key_values": past_key_values, **kwargs}
        return call(self, given)

    def new(self, input_ids=None, cache=None, logits_to_keep=0, **kwargs):
        return call(self, {"input_ids": input_ids, "cache": cache, **kwargs})

    return {"past_key_values": old, "cache": new}[keyword]


def written(model):
    """Six tokens after each of two prompts."""
    sampler = CachedSampler(LocalOptions(max_new_tokens=6))
    sampler.sync(ModelView(model), 0)
    prompts = [torch.tensor([5, 6, 7, 8]), torch.tensor([9, 10])]
    asked = [Request(ids, i, i, SamplingParams(6, 1.0), columns={}) for i, ids in enumerate(prompts)]
    return completions(sampler.sample(asked))


@pytest.mark.parametrize("keyword", CACHE_KEYWORDS)
def test_the_cached_sampler_writes_the_same_under_either_name(keyword):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config("llama")).eval().requires_grad_(False)
    expected = written(model)
    model.forward = types.MethodType(with_cache_named(keyword, type(model).forward), model)
    assert cache_keyword(model) == keyword
    assert written(model) == expected


@pytest.mark.parametrize("keyword", CACHE_KEYWORDS)
def test_shared_prompts_are_read_under_either_name(folder_of, keyword):
    base = load(folder_of("llama"), "none")
    ids = torch.arange(24).view(3, 8)
    ids[:, :5] = ids[0, :5]
    shared = share(ids, torch.tensor([5, 5, 5]), torch.tensor([8, 7, 8]), worth=2.0)
    with base.role("policy", train=False), torch.no_grad():
        expected = base.forwards.hidden(ids, shared=shared)
        base.loaded.trunk.forward = types.MethodType(
            with_cache_named(keyword, type(base.loaded.trunk).forward), base.loaded.trunk
        )
        assert cache_keyword(base.loaded.trunk) == keyword
        assert torch.equal(base.forwards.hidden(ids, shared=shared), expected)


def test_a_forward_that_names_neither_is_given_the_name_of_transformers_own():
    class Open:
        def forward(self, input_ids, **kwargs): ...

    parameters = inspect.signature(LlamaForCausalLM.forward).parameters
    assert cache_keyword(Open()) == next(name for name in CACHE_KEYWORDS if name in parameters)


def test_a_forward_that_a_wrapper_stands_in_for_is_asked_through_it():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config("llama"))
    own = cache_keyword(model)
    forward = model.forward

    @functools.wraps(forward)
    def hooked(*args, **kwargs):
        return forward(*args, **kwargs)

    model.forward = hooked
    assert cache_keyword(model) == own


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_base_computes_alike_whatever_the_cpu_has(folder_of, monkeypatch, name):
    """With the flag a forward in eval mode would repack the weights, for a kernel that only some CPUs have."""
    packed = []
    monkeypatch.setattr("bitsandbytes.nn.modules._convert_weight_packed_for_cpu", lambda *a: packed.append(a))
    out = []
    for flag in (False, True):
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda flag=flag: flag)
        base = load(folder_of(name))
        for role in ("policy", "base"):
            with base.role(role, train=False), torch.no_grad():
                out.append(base.lm(input_ids=tokens(2, 7)).logits)
    assert torch.equal(out[0], out[2]) and torch.equal(out[1], out[3]) and not packed


def test_without_it_the_weights_would_be_repacked(folder_of, monkeypatch):
    packed = []

    def convert(data, state):
        packed.append(state)
        return data, state

    monkeypatch.setattr("bitsandbytes.nn.modules._convert_weight_packed_for_cpu", convert)
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    monkeypatch.setattr("rlhf_peft.builtin.quantizers.four_bits.disable_bf16_cpu_kernels", lambda model: None)
    base = load(folder_of("llama"))
    with base.role("base", train=False), torch.no_grad():
        base.lm(input_ids=tokens(2, 7))
    assert packed
    packed.clear()
    disable_bf16_cpu_kernels(base.lm)
    with base.role("base", train=False), torch.no_grad():
        base.lm(input_ids=tokens(2, 7))
    assert not packed
