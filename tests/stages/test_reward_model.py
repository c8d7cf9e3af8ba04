"""Bradley-Terry training on the shared base."""

import json
import math

import pytest
import torch

from rlhf_peft.data import Pair
from rlhf_peft.errors import DataError
from rlhf_peft.session.token_budget import TokenBudget
from rlhf_peft.stages import reward_model
from rlhf_peft.stages.reward_model.scoring import describe, evaluate, score
from rlhf_peft.stages.reward_model.stage import _begin, _pairs
from rlhf_peft.stages.reward_model.trainer import Trainer

PAIRS = {"name": "tiny", "part": "preferences", "size": 96, "noise": 0.0}
HELD = {"name": "tiny", "part": "preferences", "questions": "test", "size": 48, "noise": 0.0}


def budget():
    return TokenBudget("reward_model", 4096)


def stage(**changes):
    return {
        "stage": "reward_model",
        "dataset": PAIRS,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "num_train_epochs": 3,
        "eval": {"dataset": HELD},
        **changes,
    }


def run(ctx):
    return reward_model.run(ctx.recipe.stages[0], ctx)


def logged(ctx):
    return [json.loads(line) for line in (ctx.run.path / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_says_how_well(make_context):
    ctx = make_context(stage(normalize="standardize", max_steps=14))
    out = run(ctx)
    lines = logged(ctx)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 14 and sum(losses[-4:]) / 4 < sum(losses[:4]) / 4
    assert set(out["metrics"]) == {"eval/accuracy", "eval/margin", "eval/loss", "eval/ece"}
    assert out["held_out"] == 48 and 0 <= out["metrics"]["eval/ece"] <= 1
    assert (ctx.run.adapter_dir("reward-0") / "head.safetensors").is_file()


def test_adamw_has_the_coefficients_of_the_recipe(make_context, monkeypatch):
    made = []
    original = torch.optim.AdamW.__init__
    monkeypatch.setattr(torch.optim.AdamW, "__init__", lambda *a, **k: made.append(k) or original(*a, **k))
    run(make_context(stage(max_steps=1, adam_epsilon=1e-6, adam_beta1=0.8, adam_beta2=0.9)))
    assert [(given["eps"], given["betas"]) for given in made] == [(1e-6, (0.8, 0.9))]


def test_the_bias_of_a_head_is_not_trained(make_context):
    ctx = make_context(stage(max_steps=2, center_rewards_coefficient=0.1, normalize="none", weight_decay=0.1))
    run(ctx)
    assert float(ctx.base.roles.head("reward-0").bias) == 0.0


def test_only_the_reward_role_moves(make_context):
    ctx = make_context(stage(max_steps=2))
    before = {n: p.detach().clone() for n, p in ctx.base.model.named_parameters()}
    run(ctx)
    for name, parameter in ctx.base.model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name]), name
        assert not parameter.requires_grad


@pytest.mark.parametrize(("how", "spread"), [("shift", None), ("standardize", 1.0)])
def test_chosen_answers_have_mean_zero_afterwards(make_context, how, spread):
    ctx = make_context(stage(normalize=how, max_steps=3))
    stage_ = ctx.recipe.stages[0]
    run(ctx)
    pairs, _ = _pairs(stage_, ctx)
    rewards = score(ctx.base, "reward-0", [p.chosen_ids for p in pairs], budget())
    assert float(rewards.mean()) == pytest.approx(0.0, abs=1e-3)
    if spread:
        assert float(rewards.std()) == pytest.approx(spread, abs=1e-2)


@pytest.mark.parametrize("how", ["shift", "standardize"])
def test_a_second_round_keeps_the_scale_of_the_first(make_context, tmp_path, how):
    shipped = {"path": "builtin:tiny"}  # A model that has learnt something gives scores with a mean.
    first = make_context(stage(normalize=how, max_steps=3), model=shipped)
    run(first)
    first.base.roles.save("reward-0", tmp_path / "rm")
    other = {**PAIRS, "questions": "test", "noise": 0.5}
    second = make_context(
        stage(normalize=how, max_steps=3, dataset=other, init={"reward": str(tmp_path / "rm")}),
        model=shipped,
    )
    pairs, _ = _pairs(second.recipe.stages[0], second)
    answers = [pair.chosen_ids for pair in pairs]
    second.base.roles.load("reward-0", str(tmp_path / "rm"), head=True)
    before = score(second.base, "reward-0", answers, budget())
    run(second)
    after = score(second.base, "reward-0", answers, budget())
    assert abs(float(before.mean())) > 1e-2 and not torch.allclose(after, before, atol=1e-3)
    assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-3)
    if how == "standardize":
        assert float(after.std()) == pytest.approx(float(before.std()), rel=1e-2)


def test_an_ensemble_is_several_roles_that_differ(make_context):
    ctx = make_context(stage(ensemble=2, max_steps=2))
    run(ctx)
    assert {"reward-0", "reward-1"} <= set(ctx.base.roles.names)
    first, second = (ctx.base.roles.heads[f"reward-{i}"].weight for i in range(2))
    assert not torch.allclose(first, second)
    steps = [line["step"] for line in logged(ctx) if "loss" in line]
    assert steps == [1, 2, 3, 4]


def test_the_update_does_not_depend_on_the_micro_batch(make_context):
    ctx = make_context(stage(max_steps=1))
    stage_ = ctx.recipe.stages[0]
    pairs, _ = _pairs(stage_, ctx)
    _begin(stage_, ctx, "reward-0")
    weight = ctx.base.roles.heads["reward-0"].weight
    with torch.no_grad():
        weight.copy_(torch.linspace(-1, 1, weight.numel()))
    found = []
    with ctx.base.training(["reward-0"]) as parameters, ctx.base.role("reward-0", train=True):
        for tokens in (4096, 64):
            trainer = Trainer(stage_, ctx, 0, pairs, [], 1, budget())
            trainer.updating.amount = tokens
            figures = trainer._step(1, pairs[:12], Frozen(), parameters)
            found.append((torch.cat([p.grad.flatten() for p in parameters]), figures))
            for parameter in parameters:
                parameter.grad = None
    (one, a), (many, b) = found
    assert float(one.abs().max()) > 0
    assert torch.allclose(one, many, atol=1e-5 * float(one.abs().max()))
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_small_gradients_do_not_underflow_in_float16(make_context):
    found = []
    for dtype in ("float32", "float16"):
        ctx = make_context(stage(max_steps=1), model={"compute_dtype": dtype, "quantization": "none"})
        assert ctx.base.dtype == getattr(torch, dtype)
        stage_ = ctx.recipe.stages[0]
        pairs, _ = _pairs(stage_, ctx)
        _begin(stage_, ctx, "reward-0")
        weight = ctx.base.roles.heads["reward-0"].weight
        with torch.no_grad():
            weight.copy_(torch.linspace(-1e-5, 1e-5, weight.numel()))
        with ctx.base.training(["reward-0"]) as parameters, ctx.base.role("reward-0", train=True):
            trainer = Trainer(stage_, ctx, 0, pairs, [], 1, budget())
            metrics = trainer._step(1, pairs[:12], Frozen(), parameters)
            adapter = [p for p in parameters if p is not weight]
            found.append((torch.cat([p.grad.flatten() for p in adapter]), metrics))
            for parameter in parameters:
                parameter.grad = None
    (expected, plain), (gradient, scaled) = found
    assert float((gradient - expected).norm() / expected.norm()) < 0.02
    assert scaled["loss_scale"] == 2.0**16 and "loss_scale" not in plain


class Frozen:
    """An optimizer that leaves everything, gradients too, as it is."""

    def step(self): ...

    def zero_grad(self, set_to_none=True): ...


def pair(label):
    return Pair(torch.arange(3), torch.arange(2), label=label)


def test_figures_by_hand():
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])
    out = describe(chosen, rejected, [pair(1.0), pair(1.0)])
    assert out["accuracy"] == 0.5 and out["margin"] == pytest.approx(0.5)
    assert out["loss"] == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2, abs=1e-6)
    s2, s1 = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    # Two bins: a confidence of s(2) that was right, one of s(1) that was wrong.
    assert out["ece"] == pytest.approx(((1 - s2) + s1) / 2, abs=1e-6)


def test_a_soft_label_below_a_half_means_the_other_is_better():
    out = describe(torch.tensor([0.0]), torch.tensor([1.0]), [pair(0.2)])
    assert out["accuracy"] == 1.0


def test_evaluation_is_what_the_heads_say(make_context):
    ctx = make_context(stage(max_steps=1, normalize="none"))
    run(ctx)
    pairs, _ = _pairs(ctx.recipe.stages[0], ctx)
    with torch.no_grad(), ctx.base.role("reward-0", train=False):
        one = ctx.base.forwards.rewards(
            ctx.base.forwards.hidden(pairs[0].chosen_ids[None]),
            torch.tensor([len(pairs[0].chosen_ids)]),
            "reward-0",
        )
        two = ctx.base.forwards.rewards(
            ctx.base.forwards.hidden(pairs[0].rejected_ids[None]),
            torch.tensor([len(pairs[0].rejected_ids)]),
            "reward-0",
        )
    assert evaluate(ctx.base, "reward-0", pairs[:1], budget())["margin"] == pytest.approx(
        float(one - two), abs=1e-4
    )


def test_a_reward_starts_from_an_earlier_one(make_context, tmp_path):
    ctx = make_context(stage(max_steps=1))
    run(ctx)
    saved = ctx.base.roles.heads["reward-0"].weight.clone()
    ctx.base.roles.save("reward-0", tmp_path / "rm")
    again = make_context(stage(max_steps=1, learning_rate=1e-12, init={"reward": str(tmp_path / "rm")}))
    run(again)
    assert torch.allclose(again.base.roles.heads["reward-0"].weight, saved, atol=1e-6)


def test_one_pair_is_too_few(make_context, tmp_path):
    file = tmp_path / "one.jsonl"
    file.write_text('{"prompt": "a", "chosen": " b", "rejected": " c"}\n')
    with pytest.raises(DataError, match="too few"):
        run(make_context(stage(dataset={"path": str(file)}, eval={})))
