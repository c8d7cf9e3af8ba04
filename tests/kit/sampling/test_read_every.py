"""It makes no difference after how many steps the drawn tokens are read."""

import pytest
import torch

from rlhf_peft.kit.sampling.local import write_rows
from rlhf_peft.kit.sampling.rows import start_rows
from rlhf_peft.testing.doubles import FakePolicy, make_requests
from rlhf_peft.types import SamplingParams


class Counting:
    """A decoder that counts its steps and the rows of each."""

    def __init__(self, decoder):
        self.decoder, self.rows = decoder, []

    @property
    def logits(self):
        return self.decoder.logits

    def step(self, tokens):
        self.rows.append(len(tokens))
        return self.decoder.step(tokens)

    def keep(self, rows):
        self.decoder.keep(rows)

    def should_compact(self, going, rows):
        return self.decoder.should_compact(going, rows)


def written(every, params, **options):
    policy = FakePolicy()
    rows = start_rows(make_requests(12, 3, params), policy.max_length, "test")
    with policy.decoding() as model:
        prompts = [row.request.prompt_ids.tolist() for row in rows]
        decoder = Counting(model.start(prompts, max(row.room for row in rows)))
        write_rows(decoder, policy, rows, read_every=every, **options)
    return [(row.tokens, row.logps, row.finish) for row in rows], decoder.rows


@pytest.mark.parametrize(
    "params",
    [SamplingParams(20), SamplingParams(20, stop=("a", "the")), SamplingParams(3, temperature=0.0)],
    ids=["plain", "stop strings", "greedy and short"],
)
def test_rows_are_the_same(params):
    expected, steps = written(1, params)
    assert {finish for _, _, finish in expected} != {"length"} or params.max_new_tokens == 3
    for every in (2, 3, 8, 100):
        rows, later = written(every, params)
        assert [(tokens, finish) for tokens, _, finish in rows] == [(t, f) for t, _, f in expected]
        for (_, ours, _), (_, theirs, _) in zip(rows, expected, strict=True):
            assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), atol=1e-5)
        assert len(later) >= len(steps) and len(later) - len(steps) < every
