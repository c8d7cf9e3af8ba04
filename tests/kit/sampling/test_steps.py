"""A decoder's own loop is used where it has one, and its draws are those that are made one after the other."""

import torch

from rlhf_peft.kit.sampling import start_rows, write_rows
from rlhf_peft.kit.sampling.drawing import DrawOptions, draw
from rlhf_peft.kit.sampling.rows import streams
from rlhf_peft.kit.sampling.steps import Draws
from rlhf_peft.testing.doubles import FakePolicy, make_requests
from rlhf_peft.types import SamplingParams


def rows_of(policy, count=6, tokens=12):
    return start_rows(make_requests(count, 3, SamplingParams(tokens)), policy.max_length, "test")


def test_draws_are_kept_where_their_number_says():
    rows = rows_of(FakePolicy())
    draws, uniforms = Draws(rows, "cpu"), streams(rows, "cpu")
    options = DrawOptions.of([row.request.params for row in rows])
    logits = torch.randn(12, 6, 32, generator=torch.Generator().manual_seed(0))
    for t in (0, 5, 11):
        tokens, logps = draw(logits[t], uniforms[t], options)
        assert torch.equal(draws(logits[t], torch.tensor([t])), tokens)
        assert torch.equal(draws.drawn[t, 0].long(), tokens) and torch.equal(draws.drawn[t, 1].float(), logps)
    keep = torch.tensor([1, 4])
    draws.keep(keep, [rows[1], rows[4]])
    tokens = draws(logits[6, keep], torch.tensor([6]))
    assert torch.equal(tokens, draw(logits[6], uniforms[6], options)[0][keep])
    assert draws.drawn.shape == (12, 2, 2)


class Looping:
    """A decoder with a loop of its own, which remembers what it is asked."""

    loops = True

    def __init__(self, decoder):
        self.decoder, self.asked = decoder, []

    def loop(self, draw):
        self.draw, self.count = draw, torch.zeros(1, dtype=torch.int64)
        self.tokens = draw(self.decoder.logits, self.count)
        return self

    def run(self, tokens):
        self.asked.append(tokens)
        while int(self.count) + 1 < tokens:
            logits = self.decoder.step(self.tokens)
            self.count += 1
            self.tokens = self.draw(logits, self.count)

    def keep(self, rows):
        self.asked.append(f"{len(rows)} rows")
        self.decoder.keep(rows)
        self.tokens = self.tokens[rows]

    def should_compact(self, going, rows):
        return going < rows


def test_a_loop_writes_the_same_rows():
    policy, out = FakePolicy(), []
    for wrap in (lambda decoder: decoder, Looping):
        rows = rows_of(policy, 12, 20)
        with policy.decoding() as model:
            decoder = wrap(model.start([row.request.prompt_ids.tolist() for row in rows], 20))
            write_rows(decoder, policy, rows, read_every=4)
        out.append([(row.tokens, row.finish) for row in rows])
    assert out[0] == out[1]
    assert decoder.asked[0] == 4 and any(str(word).endswith("rows") for word in decoder.asked)
    assert {finish for _, finish in out[0]} == {"eos", "length"}
