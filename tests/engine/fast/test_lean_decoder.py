"""The lean step gives the logits of transformers' own forward, whatever the rows and prompts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from rlhf_peft.builtin.samplers.cached import CachedSampler
from rlhf_peft.engine.compat import cache_keyword
from rlhf_peft.engine.decoding import PlainStepper
from rlhf_peft.engine.fast.lean import LeanDecoder, Rows
from rlhf_peft.engine.kv_cache import GrowingCache
from rlhf_peft.kit.sampling import LocalOptions
from tests.engine.support import config

from ...builtin.samplers.support import ModelView, completions


def model_of(name, **changes):
    torch.manual_seed(0)
    made = config(name)
    for key, value in changes.items():
        setattr(made, key, value)
    model = AutoModelForCausalLM.from_config(made).eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            parameter.normal_(std=0.1)
    return model


def read(model, prompts):
    """Prompts padded on the left, read once."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    cache = GrowingCache(model.config.num_hidden_layers, width)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        known = {cache_keyword(model): cache, "use_cache": True}
        model(input_ids=ids, attention_mask=mask, position_ids=positions, **known)
    return cache, mask


PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14]]


@pytest.mark.parametrize("name", ["llama", "llama_bias", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "which",
    [
        [0, 0, 1, 1, 2, 2],
        [0, 1, 1, 1, 2, 0],
        [2],
        [2, 0],
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2],
        [2, 1, 0, 0, 1, 2, 2, 1, 1, 1, 0, 1, 1, 1],
    ],
)
def test_steps_are_the_models_own_while_rows_come_and_go(name, which):
    model, which = model_of(name), torch.tensor(which)
    assert LeanDecoder.supports(model)
    (first, mask), (second, _) = read(model, PROMPTS), read(model, PROMPTS)
    lean, usual = LeanDecoder(model, first, mask, which, 8), PlainStepper(model, second, mask, which, 8)
    lengths = mask.sum(-1)[which]
    with torch.no_grad():
        for t in range(6):
            tokens = (torch.arange(len(lengths)) * 7 + 3 * t) % 300
            ours = lean.step(tokens, (lengths + t).unsqueeze(-1))
            theirs = usual.step(tokens, (lengths + t).unsqueeze(-1))
            assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max())), t
            if t in (1, 3) and len(lengths) > 2:
                # Many rows read their prompts together, and each its own as they become few.
                keep = (
                    torch.arange(1, len(lengths)) if t == 1 else torch.arange(len(lengths) // 2, len(lengths))
                )
                lean.keep(keep), usual.keep(keep)
                lengths = lengths[keep]


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "phi3", "olmo2", "mixtral", "mistral"])
def test_models_of_another_shape_are_not_supported(name):
    assert not LeanDecoder.supports(model_of(name))


def write(model, sampler, view=None):
    from rlhf_peft.plugin import Request, SamplingParams

    asked = [Request(torch.tensor(PROMPTS[i % 3]), i % 3, i, SamplingParams(12, 1.0)) for i in range(7)]
    sampler.sync(view or ModelView(model), 0)
    return completions(sampler.sample(asked))


def count_steps(monkeypatch):
    """A list that grows by one with each lean step."""
    steps, step = [], LeanDecoder.step
    monkeypatch.setattr(LeanDecoder, "step", lambda self, *given: steps.append(1) or step(self, *given))
    return steps


def test_a_sampler_writes_the_same_with_and_without_it(monkeypatch):
    model = model_of("qwen2")
    lean, plain = ModelView(model), ModelView(model, fast=False)
    steps = count_steps(monkeypatch)
    ours = write(model, CachedSampler(LocalOptions()), lean)
    assert len(steps) > 2
    steps.clear()
    assert ours == write(model, CachedSampler(LocalOptions()), plain) and not steps


@pytest.mark.parametrize("name", ["granite", "gemma"])
def test_a_model_that_computes_otherwise_is_found_out(monkeypatch, name):
    """Granite scales what it adds, under the names that Llama has."""
    model = model_of(name, **({"residual_multiplier": 0.5} if name == "granite" else {}))
    steps = count_steps(monkeypatch)
    completions = write(model, CachedSampler(LocalOptions()))
    assert len(steps) == int(LeanDecoder.supports(model))  # the comparison alone
    plain = ModelView(model, fast=False)
    assert completions == write(model, CachedSampler(LocalOptions()), plain)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_rows_are_found_again(which):
    rows = Rows(torch.tensor(which))
    given_rows = torch.randn(len(which), 3)
    placed = rows.gather(given_rows.view(*rows.shape, 3))
    assert placed.shape[:2] == (len(set(which)), max(map(which.count, which)))
    assert torch.equal(rows.spread(placed).reshape(given_rows.shape), given_rows)
    for prompt, held in zip(rows.prompts.tolist(), placed, strict=True):
        own = given_rows[torch.tensor(which) == prompt]
        assert torch.equal(held[: len(own)], own) and not held[len(own) :].any()
