"""Architectures unlike Llama: each trains, writes and merges as transformers' own model does."""

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_peft.builtin.samplers.cached import CachedSampler
from rlhf_peft.engine import POLICY
from rlhf_peft.engine.base_spec import quiet
from rlhf_peft.kit.sampling import LocalOptions
from rlhf_peft.plugin import Request, SamplingParams
from rlhf_peft.session.policy_view import BaseView

from .support import ARCHITECTURES, load, save_model, stir, tokens
from .zoo import ZOO

FEW = ("mamba", "falcon_h1", "jamba", "lfm2", "qwen3_next", "gpt_oss")
"""Those that are tried every time."""
STATES = (
    *("mamba", "falcon_mamba", "mamba2", "falcon_h1", "bamba", "granite4", "granite4moe", "jamba", "zamba2"),
    *("nemotron_h", "recurrent_gemma", "lfm2", "lfm2_moe", "qwen3_next", "qwen3_5", "qwen3_5_moe", "minimax"),
)
"""Those whose completions `hf` writes."""


@pytest.fixture(
    scope="module",
    params=[name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in ZOO],
)
def model(request, tmp_path_factory):
    """A name, the folder of its model, and its base with a policy that has an effect."""
    name, folder = request.param, tmp_path_factory.mktemp("zoo")
    save_model(folder, name)
    base = load(folder, "none")
    stir(base, POLICY)
    return name, folder, base


def logits(base, ids):
    with base.role(POLICY, train=False), torch.no_grad():
        return base.lm(input_ids=ids, use_cache=False).logits.float()


def near(ours, theirs):
    return torch.allclose(ours, theirs, atol=1e-4 * max(1.0, float(theirs.abs().max())))


def test_its_log_probabilities_are_those_of_plain_transformers(model):
    _, folder, base = model
    ids, mask = tokens(3, 9), torch.ones(3, 9, dtype=torch.bool)
    with quiet(), torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        whole = plain(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    base.roles.add("fresh")
    with base.role("fresh", train=False), torch.no_grad():
        ours, _ = base.forwards.logps(base.forwards.hidden(ids), ids, mask)
    base.roles.remove("fresh")
    assert near(ours[:, 1:], whole[:, :-1].gather(-1, ids[:, 1:, None])[..., 0])


def test_every_adapter_of_all_linear_is_trained(model):
    _, _, base = model
    ids, mask = tokens(3, 9), torch.ones(3, 9, dtype=torch.bool)
    with base.training([POLICY]) as parameters, base.role(POLICY):
        base.forwards.logps(base.forwards.hidden(ids), ids, mask)[0].sum().backward()
        silent = [p.shape for p in parameters if p.grad is None or not bool(p.grad.any())]
        for parameter in parameters:
            parameter.grad = None
    assert len(parameters) == 2 * len(base.roles.targets.able) > 0 and not silent


def test_merged_weights_give_the_same_logits(model):
    _, _, base = model
    ids = tokens(3, 9)
    expected = logits(base, ids)
    with base.decoding.as_role(POLICY, merge=True) as decoding:
        assert near(decoding.lm(input_ids=ids, use_cache=False).logits.float(), expected)


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "adapters"])
def test_the_default_sampler_writes_what_the_policy_says(model, merge, caplog):
    name, _, base = model
    base.merge_rollouts = merge
    sampler = CachedSampler(LocalOptions(max_new_tokens=8))
    sampler.sync(BaseView(base), 0)
    prompts = [tokens(1, length, seed=length)[0] for length in (3, 7, 5, 7)]
    asked = [
        Request(ids, i // 2, i, SamplingParams(8))
        for ids, i in zip([*prompts, prompts[0]], range(5), strict=True)
    ]
    with caplog.at_level(logging.WARNING, logger="rlhf_peft"):
        rollouts = [sampler.sample(asked), sampler.sample(asked)]
    for ids, mask, said in zip(
        rollouts[0].input_ids, rollouts[0].action_mask, rollouts[0].sampler_logps, strict=True
    ):
        with base.role(POLICY, train=False), torch.no_grad():
            expected, _ = base.forwards.logps(base.forwards.hidden(ids[None]), ids[None], mask[None])
        assert torch.allclose(expected[0], said, atol=1e-3)
    told = [record.getMessage() for record in caplog.records if "sampler cached" in record.getMessage()]
    assert len(told) == (name in STATES), told


def test_the_list_is_long():
    assert len(set(ZOO) - set(ARCHITECTURES)) >= 30
