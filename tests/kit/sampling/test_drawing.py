"""Draws follow the distribution, truncated or not, and a row's draw is its own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_peft.kit.sampling.drawing import BELOW_ONE, DrawOptions, distribution, draw, truncate, uniforms
from rlhf_peft.plugin import SamplingParams

from ...builtin.samplers.support import MIXED

LOGITS = torch.tensor([0.0, 1.0, -1.0, 2.0, -30.0, 0.5])


def knobs(rows=1, temperature=1.0, **truncation):
    return DrawOptions.of([SamplingParams(8, temperature, **truncation)] * rows)


def reference(logits, temperature, top_p, top_k, min_p):
    """The kept tokens' probabilities, token by token in plain Python."""
    probs = torch.softmax(logits.double() / temperature, -1).tolist()
    kept = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
    kept = kept[: top_k or len(kept)]
    total = sum(probs[i] for i in kept)
    if top_p < 1:
        count, mass = 0, 0.0
        while count < len(kept) and mass < top_p * total:
            mass += probs[kept[count]]
            count += 1
        kept = kept[: max(count, 1)]
    kept = [i for i in kept if probs[i] >= min_p * max(probs)]
    total = sum(probs[i] for i in kept)
    return torch.tensor([probs[i] / total if i in kept else 0.0 for i in range(len(probs))]).float()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize(
    "truncation", [{}, {"top_p": 0.7}, {"top_k": 3}, {"min_p": 0.2}, {"top_p": 0.95, "top_k": 4}]
)
def test_draws_follow_the_distribution(temperature, truncation):
    many = 20_000
    u = torch.rand(many, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens, logps = draw(LOGITS.expand(many, -1), u, knobs(many, temperature, **truncation))
    expected = reference(LOGITS, temperature, **{"top_p": 1.0, "top_k": 0, "min_p": 0.0, **truncation})
    seen = torch.bincount(tokens, minlength=6) / many
    assert torch.allclose(seen, expected, atol=0.012)
    assert not seen[expected == 0].any()
    assert torch.allclose(logps, expected.log()[tokens], atol=1e-5)


@given(
    # Values that differ differ by more than rounding: of nearly equal ones either may be left.
    st.lists(st.integers(-320, 320).map(lambda value: value / 16), min_size=1, max_size=12),
    st.floats(0.1, 3),
    st.floats(0.01, 1),
    st.integers(0, 14),
    st.floats(0, 0.99),
)
def test_truncation_is_what_its_words_say(values, temperature, top_p, top_k, min_p):
    logits = torch.tensor(values)
    one = knobs(1, temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    probs = distribution(logits.unsqueeze(0), one)[0].exp()
    assert probs.sum().item() == pytest.approx(1, abs=1e-5)
    likelihoods = torch.softmax(logits / temperature, -1)
    assert probs[likelihoods == likelihoods.max()].any()
    expected = reference(logits, temperature, top_p, top_k, min_p)
    shares = torch.softmax(logits / temperature, -1).sort(descending=True).values
    left = shares[: top_k or None]
    edges = [*(left.cumsum(0) / left.sum() - top_p), *(shares / shares[0] - min_p)]
    if min(abs(float(edge)) for edge in edges) > 1e-6:  # else rounding decides
        assert torch.allclose(probs, expected, atol=1e-5)


@pytest.mark.parametrize("truncation", [{"top_k": 1}, {"top_p": 0.5}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_equally_likely_after_rounding(temperature, truncation):
    some = knobs(1, temperature, **truncation)
    tokens, logps = draw(torch.tensor([[0.0, 1.1754943508222875e-38]]), torch.tensor([0.9]), some)
    assert tokens.tolist() == [0] and logps.tolist() == [0.0]


@given(st.integers(0, 2**32), st.integers(2, 40))
def test_the_support_holds_for_every_number(seed, size):
    logits = 5 * torch.randn(4, size, generator=torch.Generator().manual_seed(seed))
    for u in (0.0, 0.5, 1 - 1e-9, BELOW_ONE, 1.0):
        for truncation in MIXED[1:]:
            some = knobs(4, **truncation)
            tokens, logps = draw(logits, torch.full((4,), u, dtype=torch.float64), some)
            support = distribution(logits, some).isfinite()
            assert support.gather(-1, tokens.unsqueeze(-1)).all() and logps.isfinite().all()


def test_a_row_is_drawn_alike_whoever_stands_beside_it():
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(10, 50, generator=generator)
    u = torch.rand(10, generator=generator)
    params = [SamplingParams(8, t, **MIXED[i % 5]) for i, t in enumerate([1.0, 0.7] * 5)]
    tokens, logps = draw(logits, u, DrawOptions.of(params))
    for i in range(10):
        alone = draw(logits[i : i + 1], u[i : i + 1], DrawOptions.of(params[i : i + 1]))
        assert alone[0].item() == tokens[i] and alone[1].item() == logps[i]


def test_draw_takes_the_first_token_beyond_u():
    logits = torch.tensor([[0.25, 0.25, 0.5]]).log().expand(4, -1)
    tokens, _ = draw(logits, torch.tensor([0.0, 0.2499, 0.2501, 0.999999]), knobs(4))
    assert tokens.tolist() == [0, 0, 1, 2]


def test_temperature_0_takes_the_likeliest_truncated_or_not():
    params = [SamplingParams(8, 0.0), SamplingParams(8, 0.0, top_p=0.1), SamplingParams(8, 1.0)]
    tokens, _ = draw(LOGITS.expand(3, -1), torch.tensor([0.99, 0.99, 0.0]), DrawOptions.of(params))
    assert tokens.tolist() == [3, 3, 0]


def test_of_equal_tokens_the_first_stay():
    logps = torch.zeros(1, 4).log_softmax(-1)
    ones, none = torch.ones(1), torch.zeros(1)
    assert truncate(logps, ones, torch.tensor([2]), none).exp()[0].tolist() == pytest.approx([0.5, 0.5, 0, 0])
    assert truncate(logps, ones * 0.6, torch.tensor([9]), none).isfinite()[0].tolist() == [True] * 3 + [False]


def test_streams_are_seeded_begin_alike_and_stay_below_one():
    assert torch.equal(uniforms(5, 4), uniforms(5, 9)[:4])
    assert not torch.equal(uniforms(5, 4), uniforms(6, 4))
    total = torch.tensor([0.3, 1.0, 1.0 + 2**-23, 7.1])
    assert (torch.tensor(BELOW_ONE) * total < total).all()
