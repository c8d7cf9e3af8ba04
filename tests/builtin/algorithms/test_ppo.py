"""PPO against its formulas, on tensors alone."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from rlhf_peft.builtin.algorithms.ppo import Ppo, PpoOptions
from rlhf_peft.plugin import Batch, Minibatch, Outputs, Rollout, maths


def scored(scores, n=3, t=6, **quantities):
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(n, t, dtype=torch.bool)
    for i, length in enumerate([4, 2, 3][:n]):
        mask[i, 2 : 2 + length] = True
    rollout = Rollout(
        input_ids=[torch.zeros(t, dtype=torch.int64)] * n,
        action_mask=list(mask),
        finish=["eos"] * n,
        group=torch.arange(n),
        tag=["sample"] * n,
        columns={},
    )
    made = {name: torch.randn(n, t, generator=generator) for name in ("old_logps", "ref_logps", "values")}
    return replace(Batch.of(rollout), scores=torch.tensor(scores), **{**made, **quantities})


def ppo(**options):
    return Ppo(PpoOptions(**options))


def test_k1_in_the_loss_is_refused():
    with pytest.raises(ValidationError, match="zero expected gradient"):
        PpoOptions(kl_estimator="k1", kl_placement="loss")


def test_k3_in_the_reward_is_warned_of(caplog):
    import logging

    logger = logging.getLogger("rlhf_peft")
    logger.propagate = True
    ppo(kl_estimator="k3", kl_placement="reward")
    assert "does not follow the gradient" in caplog.text


def test_advantages_are_gae_of_scores_and_kl():
    data = scored([1.0, -2.0, 0.5])
    columns, figures = ppo(beta=0.1, lam=0.9, whiten_advantages=False).prepare(data)
    row, tokens = 1, [2, 3]
    rewards = [-0.1 * float(data.old_logps[row, t] - data.ref_logps[row, t]) for t in tokens]
    rewards[-1] += -2.0
    v = [float(data.values[row, t]) for t in tokens] + [0.0]
    delta = [rewards[i] + v[i + 1] - v[i] for i in range(2)]
    assert float(columns["advantages"][row, 3]) == pytest.approx(delta[1], abs=1e-5)
    assert float(columns["advantages"][row, 2]) == pytest.approx(delta[0] + 0.9 * delta[1], abs=1e-5)
    assert torch.allclose(
        (columns["advantages"] + data.values)[data.mask], columns["returns"][data.mask], atol=1e-6
    )
    assert figures["beta"] == 0.1


def test_whitening_leaves_returns_alone():
    data = scored([1.0, -2.0, 0.5])
    plain, _ = ppo(whiten_advantages=False).prepare(data)
    white, _ = ppo().prepare(data)
    assert torch.equal(plain["returns"], white["returns"])
    assert float(maths.masked_mean(white["advantages"], data.mask)) == pytest.approx(0.0, abs=1e-6)


def test_a_row_that_abstained_is_left_out_and_moves_nothing():
    data = scored([1.0, math.nan, 0.5])
    algorithm = ppo()
    train = data.train = algorithm.select(data, 0).train
    assert train.tolist() == [True, False, True]
    columns, _ = algorithm.prepare(data)
    other = scored([1.0, math.nan, 0.5])
    other.train = train
    other.values[1] += 100
    again, _ = algorithm.prepare(other)
    assert torch.equal(columns["advantages"][train], again["advantages"][train])


def minibatch(data, advantages=None):
    ones = torch.ones_like(data.values)
    columns = {"advantages": ones if advantages is None else advantages, "returns": data.values + 1.0}
    return Minibatch(
        mask=data.mask,
        columns=columns,
        total_tokens=int(data.mask.sum()),
        total_rows=len(data),
        old_logps=data.old_logps,
        ref_logps=data.ref_logps,
        old_values=data.values,
    )


def test_the_loss_at_ratio_one_by_hand():
    data = scored([0.0, 0.0, 0.0])
    algorithm = ppo(beta=0.0, vf_coef=0.1)
    terms, figures = algorithm.loss(Outputs(data.old_logps.clone(), data.values.clone()), minibatch(data))
    # -A + 0.1 * 0.5 * (V - R)^2 with A = 1, R = V + 1
    assert torch.allclose(terms[data.mask], torch.tensor(-1.0 + 0.05))
    assert float(figures["clip_ratio/region_mean"].sum()) == 0.0


def test_kl_in_the_loss_has_the_gradient_of_k2():
    data = scored([0.0, 0.0, 0.0])
    logps = data.old_logps.clone().requires_grad_()
    zero = torch.zeros_like(data.values)
    algorithm = ppo(beta=0.3, kl_estimator="k2", kl_placement="loss", vf_coef=0.0)
    terms, _ = algorithm.loss(Outputs(logps, data.values), minibatch(data, zero))
    terms[data.mask].sum().backward()
    expected = 0.3 * (data.old_logps - data.ref_logps)
    assert torch.allclose(logps.grad[data.mask], expected[data.mask], atol=1e-6)


def test_weights_sum_to_one_over_any_split():
    data = scored([0.0, 0.0, 0.0])
    whole, algorithm = minibatch(data), ppo()
    parts = [float(algorithm.weights(replace(whole, mask=data.mask[rows])).sum()) for rows in ([0], [1, 2])]
    assert sum(parts) == pytest.approx(1.0)


def test_beta_adapts_as_ziegler_says():
    algorithm = ppo(beta=0.1, kl_target=6.0, kl_horizon=10_000)
    algorithm.step_end({"kl": 12.0, "rows": 64})
    assert algorithm.beta == pytest.approx(0.1 * (1 + 0.2 * 64 / 10_000))
    algorithm.load_state_dict({"beta": 0.5})
    assert algorithm.state_dict() == {"beta": 0.5}


def test_beta_stays_without_a_target():
    algorithm = ppo(beta=0.1)
    algorithm.step_end({"kl": 50.0, "rows": 64})
    assert algorithm.beta == 0.1


def test_importance_weighs_the_policy_alone():
    data = scored([0.0, 0.0, 0.0])
    batch = minibatch(data)
    batch.importance = torch.full_like(data.values, 0.5)
    terms, _ = ppo(beta=0.0, vf_coef=0.1).loss(Outputs(data.old_logps, data.values), batch)
    assert torch.allclose(terms[data.mask], torch.tensor(-0.5 + 0.05))
