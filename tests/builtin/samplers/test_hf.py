"""`hf` writes with any architecture what the row's seed says, whatever the batch."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_peft.builtin.samplers.cached import CachedSampler
from rlhf_peft.builtin.samplers.hf import HfOptions, HfSampler, batches
from rlhf_peft.kit.sampling import LocalOptions
from rlhf_peft.kit.sampling.rows import Row
from rlhf_peft.plugin import Request, SamplingParams

from .support import MIXED, ModelView, completions, requests

EOS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.1}
DENSE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **EOS,
}
STATE = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, **EOS}
MODELS = {
    "llama": DENSE,
    "qwen2": DENSE,
    "gpt2": {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **EOS},
    "bloom": {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4, **EOS},
    "gemma2": {**DENSE, "head_dim": 16, "sliding_window": 4},
    "mamba": STATE,
    "mamba2": {**STATE, "head_dim": 8, "num_heads": 8, "n_groups": 2, "chunk_size": 8},
    "recurrent_gemma": {**DENSE, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16},
}


@pytest.fixture(scope="module", params=MODELS)
def view(request):
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **MODELS[request.param])
    return ModelView(AutoModelForCausalLM.from_config(config).eval())


def made(view, **options):
    sampler = HfSampler(HfOptions(**options))
    sampler.sync(view, 7)
    return sampler


def asked(truncations, stop=()):
    generator = torch.Generator().manual_seed(4)
    lengths = (3, 7, 5, 7, 60, 2, 3, 9)  # 60 of 64: that row is cut by the context
    return [
        Request(
            torch.randint(3, 300, (n,), generator=generator),
            i,
            50 + i,
            SamplingParams(16, 1.0, stop, **truncations[i % len(truncations)]),
        )
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("truncations", [({},), MIXED], ids=["whole", "truncated"])
def test_a_row_depends_on_its_seed_alone(view, truncations):
    some = asked(truncations)
    sampler = made(view)
    together = completions(sampler.sample(some))
    assert together == [completions(sampler.sample([request]))[0] for request in some]
    assert together == completions(made(view, max_rows=3).sample(some[::-1]))[::-1]
    assert len({tuple(c) for c in together}) == len(together)


def test_its_logps_are_the_models(view):
    rollout = made(view).sample(asked([{}]))
    assert rollout.version == 7
    for ids, mask, logps in zip(rollout.input_ids, rollout.action_mask, rollout.sampler_logps, strict=True):
        with torch.no_grad():
            whole = view.model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0].float().log_softmax(-1)
        expected = whole[:-1].gather(-1, ids[1:, None])[:, 0] * mask[1:]
        assert torch.allclose(expected, logps[1:], atol=1e-4)


def test_rows_end_at_a_stop_string_eos_or_the_context(view):
    plain = made(view).sample(asked([{}]))
    stop = f"{view.decode(plain.completion_ids(0)[4:6])}"
    rollout = made(view).sample(asked([{}], (stop,)))
    assert rollout.finish[0] == "stop" and rollout.completion_ids(0) == plain.completion_ids(0)[:6]
    assert rollout.completion_lengths[4] <= 4 and len(rollout.input_ids[4]) <= view.max_length
    for row, finish in enumerate(rollout.finish):
        ids = rollout.completion_ids(row)
        assert (finish == "eos") == (ids[-1] == 2)
        assert finish == "stop" or stop not in view.decode(ids)


def test_the_models_generation_config_is_set_aside_and_given_back(view):
    own = view.model.generation_config
    plain = completions(made(view).sample(asked([{}])))
    try:
        own.repetition_penalty, own.max_length = 5.0, 9
        assert completions(made(view).sample(asked([{}]))) == plain
    finally:
        own.repetition_penalty, own.max_length = None, None
    assert view.model.generation_config is own


def test_it_writes_what_cached_writes(tiny_base):
    from rlhf_peft.session.policy_view import BaseView

    some = requests(tiny_base.tokenizer, 10, stop=["he", "a b"], truncations=MIXED)
    theirs = CachedSampler(LocalOptions())
    theirs.sync(BaseView(tiny_base), 1)
    one, other = theirs.sample(some), made(BaseView(tiny_base)).sample(some)
    assert completions(one) == completions(other) and one.finish == other.finish
    for left, right in zip(one.sampler_logps, other.sampler_logps, strict=True):
        assert torch.allclose(left, right, atol=1e-4)


def row(length, room):
    return Row(Request(torch.ones(length, dtype=torch.int64), 0, 0, SamplingParams(room)), room)


def test_no_batch_passes_the_end_of_the_context():
    rows = [row(60, 4), row(3, 20), row(44, 20), row(50, 14), row(3, 5), row(9, 20)]
    made = batches(rows, 64, 64, padded=True)
    assert sorted(id(r) for batch in made for r in batch) == sorted(map(id, rows))
    for batch in made:
        assert max(len(r.request.prompt_ids) for r in batch) + max(r.room for r in batch) <= 64
    assert len(made) == 3
    unpadded = batches(rows, 64, 64, padded=False)
    assert all(len({len(r.request.prompt_ids) for r in batch}) == 1 for batch in unpadded)
    assert max(len(batch) for batch in batches(rows * 3, 2, 64, padded=True)) == 2
