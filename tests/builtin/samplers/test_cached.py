"""The cached sampler writes what the policy would write, whatever the batch."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from rlhf_peft.builtin.samplers.cached import CachedSampler
from rlhf_peft.builtin.samplers.hf import HfOptions, HfSampler
from rlhf_peft.kit.sampling import LocalOptions
from rlhf_peft.plugin import Request, SamplerError, SamplingParams

from .support import MIXED, ModelView, completions, requests


@pytest.fixture
def sampler(view):
    made = CachedSampler(LocalOptions(max_new_tokens=24))
    made.sync(view, 1)
    return made


def test_greedy_equals_generate(tiny_base, sampler):
    asked = requests(tiny_base.tokenizer, 4, temperature=0.0)
    ours = completions(sampler.sample(asked))
    with torch.no_grad(), tiny_base.role("policy", train=False):
        for request, mine in zip(asked, ours, strict=True):
            out = tiny_base.lm.generate(
                input_ids=request.prompt_ids.unsqueeze(0),
                attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.int64),
                max_new_tokens=24,
                do_sample=False,
                pad_token_id=tiny_base.tokenizer.pad_token_id,
            )
            assert out[0, len(request.prompt_ids) :].tolist() == mine


@pytest.mark.parametrize("truncations", [({},), MIXED], ids=["whole", "truncated"])
def test_a_row_depends_on_its_seed_alone(tiny_base, sampler, truncations):
    asked = requests(tiny_base.tokenizer, 10, truncations=truncations)
    together = completions(sampler.sample(asked))
    alone = [completions(sampler.sample([request]))[0] for request in asked]
    backwards = completions(sampler.sample(asked[::-1]))[::-1]
    small = CachedSampler(LocalOptions(max_new_tokens=24, max_rows=3))
    small.sync(sampler._view, 1)
    assert together == alone == backwards == completions(small.sample(asked))
    assert len({tuple(c) for c in together}) > 4


def test_its_logps_are_the_trainers(tiny_base, sampler):
    rollout = sampler.sample(requests(tiny_base.tokenizer))
    for i, ids in enumerate(rollout.input_ids):
        mask = rollout.action_mask[i].unsqueeze(0)
        with torch.no_grad(), tiny_base.role("policy", train=False):
            logps, _ = tiny_base.forwards.logps(
                tiny_base.forwards.hidden(ids.unsqueeze(0)), ids.unsqueeze(0), mask
            )
        assert torch.allclose(logps[0], rollout.sampler_logps[i], atol=1e-4)


def test_rows_end_at_the_first_eos_or_are_cut(tiny_base, sampler):
    rollout = sampler.sample(requests(tiny_base.tokenizer, 16, new=12))
    eos = tiny_base.eos_ids
    assert {"eos", "length"} >= set(rollout.finish)
    for finish, ids in zip(rollout.finish, completions(rollout), strict=True):
        assert not eos & set(ids[:-1])
        assert (ids[-1] in eos) == (finish == "eos")
        assert len(ids) <= 12 and (finish == "eos" or len(ids) == 12)


def test_stop_strings_end_a_row_and_are_kept(tiny_base, sampler):
    rollout = sampler.sample(requests(tiny_base.tokenizer, 8, stop=["a"]))
    for finish, ids in zip(rollout.finish, completions(rollout), strict=True):
        text = tiny_base.tokenizer.decode(ids, skip_special_tokens=True)
        if finish == "stop":
            assert "a" in text
            assert "a" not in tiny_base.tokenizer.decode(ids[:-1], skip_special_tokens=True)
    assert "stop" in rollout.finish


def test_requests_come_back_in_their_order(tiny_base, sampler):
    asked = requests(tiny_base.tokenizer)
    rollout = sampler.sample(asked)
    assert rollout.group.tolist() == [request.group for request in asked]
    assert rollout.columns["prompt"] == [request.columns["prompt"] for request in asked]
    for request, ids, mask in zip(asked, rollout.input_ids, rollout.action_mask, strict=True):
        assert ids[~mask].tolist() == request.prompt_ids.tolist()


def test_a_context_without_room_is_refused(tiny_base, sampler):
    ids = torch.ones(tiny_base.max_length, dtype=torch.int64)
    with pytest.raises(SamplerError, match="no room"):
        sampler.sample([Request(ids, 0, 1, SamplingParams(4))])


def test_a_row_that_reaches_the_context_is_cut(tiny_base, sampler):
    ids = torch.tensor([tiny_base.tokenizer("a").input_ids[-1]] * (tiny_base.max_length - 3))
    rollout = sampler.sample([Request(ids, 0, 1, SamplingParams(50))])
    assert len(rollout.input_ids[0]) <= tiny_base.max_length


def test_the_policy_is_as_it_was_after_sampling(tiny_base, sampler):
    before = [type(module) for module in tiny_base.model.modules()]
    sampler.sample(requests(tiny_base.tokenizer, 2))
    assert [type(module) for module in tiny_base.model.modules()] == before


def test_rows_that_have_ended_do_not_pass_the_last_position():
    config = AutoConfig.for_model("gpt2", vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=32)
    view = ModelView(AutoModelForCausalLM.from_config(config).eval(), max_length=32)
    sampler = CachedSampler(LocalOptions())
    sampler.sync(view, 1)
    asked = [Request(torch.arange(3, 3 + n), 0, n, SamplingParams(20)) for n in (30, 4, 5, 6, 7, 8)]
    together = completions(sampler.sample(asked))
    assert len(together[0]) <= 2 and max(map(len, together)) > 12
    assert together == [completions(sampler.sample([request]))[0] for request in asked]


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_hf_writes_where_the_model_keeps_a_state(kind, caplog):
    """LFM2 says of its convolutions only in `layer_types` that they keep one."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    options = {"mamba": {"state_size": 4}, "lfm2": {"layer_types": ["conv", "full_attention"], **heads}}
    config = AutoConfig.for_model(kind, vocab_size=300, hidden_size=32, num_hidden_layers=2, **options[kind])
    view = ModelView(AutoModelForCausalLM.from_config(config).eval())
    asked = [Request(torch.tensor(ids), 0, i, SamplingParams(4)) for i, ids in enumerate(([3, 4], [5, 6, 7]))]
    cached, hf = CachedSampler(LocalOptions(max_rows=2)), HfSampler(HfOptions())
    for sampler in (cached, hf):
        sampler.sync(view, 1)
    first, again = completions(cached.sample(asked)), completions(cached.sample(asked))
    assert first == again == completions(hf.sample(asked))
    messages = [record.getMessage() for record in caplog.records if record.name == "rlhf_peft"]
    assert len(messages) == 1 and "ForCausalLM" in messages[0] and "hf" in messages[0]


class ForgetsItsCache(LlamaForCausalLM):
    """A model whose steps do not see what came before."""

    def forward(self, input_ids=None, use_cache=None, **kwargs):
        return super().forward(input_ids=input_ids, use_cache=False)


def test_hf_writes_where_the_cache_gives_other_logits(caplog):
    config = AutoConfig.for_model(
        "llama",
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = ForgetsItsCache(config).eval()
    for layer in model.base_model.layers:
        layer.extra = torch.nn.Identity()  # not the shape that the lean step knows
    sampler = CachedSampler(LocalOptions())
    sampler.sync(ModelView(model), 1)
    sampler.sample([Request(torch.tensor([3, 4]), 0, 1, SamplingParams(1))])
    assert "ForgetsItsCache keeps more than keys and values" in caplog.text


def test_truncated_logps_are_of_the_distribution_drawn_from(tiny_base, sampler):
    asked = requests(tiny_base.tokenizer, 4, truncations=[{"top_k": 3}])
    rollout = sampler.sample(asked)
    for ids, mask, logps in zip(rollout.input_ids, rollout.action_mask, rollout.sampler_logps, strict=True):
        with torch.no_grad(), tiny_base.role("policy", train=False):
            logits = tiny_base.lm(input_ids=ids.unsqueeze(0), use_cache=False).logits[0, :-1].float()
        top, index = logits.topk(3)
        hit = (index == ids[1:, None]) & mask[1:, None]
        assert hit.sum() == mask.sum()
        expected = (top.log_softmax(-1) * hit).sum(-1)
        assert torch.allclose(expected, logps[1:], atol=1e-4)


def test_on_policy_is_not_promised_where_tokens_are_cut_off():
    assert "on_policy" in CachedSampler(LocalOptions(temperature=0.7)).provides
    for truncation in MIXED[1:]:
        assert CachedSampler(LocalOptions(**truncation)).provides == {"logps", "row_seeds"}


def test_sample_before_sync_is_refused():
    with pytest.raises(SamplerError, match="before sync"):
        CachedSampler(LocalOptions()).sample([])


def test_nothing_asked_nothing_written(sampler):
    assert len(sampler.sample([])) == 0
