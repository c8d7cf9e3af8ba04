"""`vllm_server` compares the server's base with the recipe's."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_peft.plugin import SamplerError

from .support import ModelView
from .vllm_support import COMPLETE, asked


def tiny(seed, scale=1.0):
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=100,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model


def test_the_very_base_is_accepted_and_compared_once(make, server):
    server.model = tiny(0)
    sampler = make(sync=False, check_base=True)
    sampler.sync(ModelView(tiny(0)), 1)
    probes = len(server.of(COMPLETE))
    sampler.sync(ModelView(tiny(0)), 2)
    assert probes > 0 and len(server.of(COMPLETE)) == probes
    assert len(sampler.sample(asked(2))) == 2


def test_a_base_that_is_only_rounded_is_accepted(make, server):
    server.model = tiny(0, scale=20.0).to(torch.bfloat16)
    make(sync=False, check_base=True).sync(ModelView(tiny(0, scale=20.0)), 1)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_another_base_of_the_same_shape_is_refused(make, server, scale):
    server.model = tiny(1, scale)
    sampler = make(sync=False, check_base=True)
    with pytest.raises(SamplerError, match=r"nats a token .*another base than the recipe's model.path"):
        sampler.sync(ModelView(tiny(0, scale)), 1)
    sampler.close()
    assert server.adapters == []
