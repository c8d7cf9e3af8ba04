"""The cached sampler writes what the policy would write, whatever the batch."""

import pytest
import torch

from rlhf_peft.builtin.samplers.cached import CachedOptions, CachedSampler, draw
from rlhf_peft.plugin import Request, SamplerError, SamplingParams

PROMPTS = [
    "Tell me about a fox.",
    "Who is it?",
    "Please tell me something nice about the old lighthouse.",
    "Hello",
]


@pytest.fixture
def sampler(view):
    made = CachedSampler(CachedOptions(max_new_tokens=24))
    made.sync(view, 1)
    return made


def requests(tiny_base, count=8, temperature=1.0, new=24, stop=()):
    params = SamplingParams(new, temperature, tuple(stop))
    out = []
    for i in range(count):
        ids = torch.tensor(tiny_base.tokenizer(PROMPTS[i % len(PROMPTS)]).input_ids)
        out.append(
            Request(ids, i % len(PROMPTS), 100 + i, params, columns={"prompt": PROMPTS[i % len(PROMPTS)]})
        )
    return out


def completions(rollout):
    return [rollout.completion_ids(i) for i in range(len(rollout))]


def test_greedy_equals_generate(tiny_base, sampler):
    asked = requests(tiny_base, 4, temperature=0.0)
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


def test_a_row_depends_on_its_seed_alone(tiny_base, sampler):
    asked = requests(tiny_base)
    together = completions(sampler.sample(asked))
    alone = [completions(sampler.sample([request]))[0] for request in asked]
    backwards = completions(sampler.sample(asked[::-1]))[::-1]
    small = CachedSampler(CachedOptions(max_new_tokens=24, max_rows=3))
    small.sync(sampler._view, 1)
    assert together == alone == backwards == completions(small.sample(asked))
    assert len({tuple(c) for c in together}) > 4


def test_its_logps_are_the_trainers(tiny_base, sampler):
    rollout = sampler.sample(requests(tiny_base))
    for i, ids in enumerate(rollout.input_ids):
        mask = rollout.action_mask[i].unsqueeze(0)
        with torch.no_grad(), tiny_base.role("policy", train=False):
            logps, _ = tiny_base.logps(tiny_base.hidden(ids.unsqueeze(0)), ids.unsqueeze(0), mask)
        assert torch.allclose(logps[0], rollout.sampler_logps[i], atol=1e-4)


def test_rows_end_at_the_first_eos_or_are_cut(tiny_base, sampler):
    rollout = sampler.sample(requests(tiny_base, 16, new=12))
    eos = tiny_base.eos_ids
    assert {"eos", "length"} >= set(rollout.finish)
    for finish, ids in zip(rollout.finish, completions(rollout), strict=True):
        assert not eos & set(ids[:-1])
        assert (ids[-1] in eos) == (finish == "eos")
        assert len(ids) <= 12 and (finish == "eos" or len(ids) == 12)


def test_stop_strings_end_a_row_and_are_kept(tiny_base, sampler):
    rollout = sampler.sample(requests(tiny_base, 8, stop=["a"]))
    for finish, ids in zip(rollout.finish, completions(rollout), strict=True):
        text = tiny_base.tokenizer.decode(ids, skip_special_tokens=True)
        if finish == "stop":
            assert "a" in text
            assert "a" not in tiny_base.tokenizer.decode(ids[:-1], skip_special_tokens=True)
    assert "stop" in rollout.finish


def test_requests_come_back_in_their_order(tiny_base, sampler):
    asked = requests(tiny_base)
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


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0, -30.0]]).expand(20_000, -1)
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for temperature in (1.0, 0.5):
        tokens, logps = draw(logits, uniforms, torch.full((20_000,), temperature))
        expected = torch.softmax(logits[0] / temperature, -1)
        seen = torch.bincount(tokens, minlength=5) / 20_000
        assert torch.allclose(seen, expected, atol=0.012)
        assert torch.allclose(logps, expected.log()[tokens], atol=1e-5)


def test_draw_takes_the_first_token_beyond_u():
    logits = torch.tensor([[0.25, 0.25, 0.5]]).log().expand(4, -1)
    tokens, _ = draw(logits, torch.tensor([0.0, 0.2499, 0.2501, 0.999999]), torch.ones(4))
    assert tokens.tolist() == [0, 0, 1, 2]


def test_the_policy_is_as_it_was_after_sampling(tiny_base, sampler):
    before = [type(module) for module in tiny_base.model.modules()]
    sampler.sample(requests(tiny_base, 2))
    assert [type(module) for module in tiny_base.model.modules()] == before
