"""REINFORCE++ and ReMax against their formulas."""

import pytest
import torch
from pydantic import ValidationError

from rlhf_peft.builtin.algorithms import ReinforcePlusPlus, Remax
from rlhf_peft.plugin import BASELINE

from .rollouts import PROMPT, APrompt, Ask, scored


def test_reinforce_plus_plus_whitens_returns_over_the_batch():
    data = scored([1.0, -2.0, 0.5])
    advantages = ReinforcePlusPlus(ReinforcePlusPlus.Options(beta=0.1)).prepare(data)[0]["advantages"]
    returns = torch.zeros(data.mask.shape)
    for row, score in enumerate([1.0, -2.0, 0.5]):
        tokens = data.mask[row].nonzero().flatten().tolist()
        for t in tokens:
            later = [u for u in tokens if u >= t]
            kl = sum(float(data.old_logps[row, u] - data.ref_logps[row, u]) for u in later)
            returns[row, t] = score - 0.1 * kl
    real = returns[data.mask]
    expected = (real - real.mean()) / real.std()
    assert torch.allclose(advantages[data.mask], expected, atol=1e-4)
    assert not advantages[~data.mask].any()


def test_the_baseline_form_compares_within_the_group_first():
    options = ReinforcePlusPlus.Options(baseline="group", num_generations=2, beta=0.0)
    data = scored([5.0, 3.0, 101.0, 99.0], [0, 0, 1, 1], lengths=[2, 2, 2, 2])
    advantages = ReinforcePlusPlus(options).prepare(data)[0]["advantages"]
    assert torch.allclose(
        advantages[:, PROMPT], torch.tensor([1.0, -1.0, 1.0, -1.0]) * (7 / 8) ** 0.5, atol=1e-5
    )


def test_the_baseline_form_needs_a_group():
    with pytest.raises(ValidationError, match="num_generations"):
        ReinforcePlusPlus.Options(baseline="group")


def test_remax_asks_for_a_greedy_row_a_prompt():
    asked = Remax(Remax.Options()).requests([APrompt(0), APrompt(1)], Ask())
    assert [(r.group, r.tag, r.params.temperature) for r in asked] == [
        (0, "sample", 1.0),
        (1, "sample", 1.0),
        (0, BASELINE, 0.0),
        (1, BASELINE, 0.0),
    ]


def test_remax_takes_the_greedy_score_off_and_trains_on_samples_only():
    data = scored([1.0, 3.0, 0.25, 4.0], [0, 1, 0, 1], tag=["sample", "sample", BASELINE, BASELINE])
    algorithm = Remax(Remax.Options(beta=0.0))
    data.train = algorithm.select(data, 0).train
    assert data.train.tolist() == [True, True, False, False]
    advantages = algorithm.prepare(data)[0]["advantages"]
    assert torch.equal(advantages[0][data.mask[0]], torch.full((4,), 0.75))
    assert torch.equal(advantages[1][data.mask[1]], torch.full((2,), -1.0))


def test_remax_has_the_kl_to_come_in_the_return():
    data = scored([1.0, 0.0], [0, 0], lengths=[2, 2], tag=["sample", BASELINE])
    data.train = torch.tensor([True, False])
    advantages = Remax(Remax.Options(beta=0.5)).prepare(data)[0]["advantages"]
    kl = (data.old_logps - data.ref_logps)[0]
    assert float(advantages[0, PROMPT + 1]) == pytest.approx(1.0 - 0.5 * float(kl[PROMPT + 1]), abs=1e-5)
    both = float(kl[PROMPT] + kl[PROMPT + 1])
    assert float(advantages[0, PROMPT]) == pytest.approx(1.0 - 0.5 * both, abs=1e-5)
