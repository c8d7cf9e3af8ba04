"""What goes wrong in an RL step: numbers that are not finite, memory that does not suffice."""

import math

import pytest
import torch

from rlhf_peft.builtin.algorithms import Grpo
from rlhf_peft.builtin.samplers import CachedSampler
from rlhf_peft.errors import GuardError, RlhfPeftError
from rlhf_peft.hookspecs import hookimpl
from rlhf_peft.stages.rl.forwards import RoleForwards

from .support import logged, outcome_of, run, same, stage, with_coarse


class Spoiled(Grpo):
    """GRPO whose loss of one row is not a number, in the micro-batches that are named."""

    spoil: tuple[int, ...] = ()
    calls = 0

    def loss(self, outputs, minibatch):
        terms, figures = super().loss(outputs, minibatch)
        Spoiled.calls += 1
        if Spoiled.calls in self.spoil:
            terms = terms.clone()
            terms[0] = float("nan")
        return terms, figures

    class Plugin:
        @hookimpl
        def rlhf_peft_register_algorithms(self, register):
            register("spoiled", Spoiled)


def spoiled(make_context, monkeypatch, spoil, **changes):
    monkeypatch.setattr(Spoiled, "spoil", spoil)
    monkeypatch.setattr(Spoiled, "calls", 0)
    ctx = make_context(stage(eval={}, algorithm={"name": "ppo"}, prompts_per_step=4, **changes))
    ctx.registry.add(Spoiled.Plugin(), "spoiled", "tests", "1", "a test")
    algorithm = {"name": "spoiled", "num_generations": 4, "num_epochs": 2, "beta": 0.0}
    section = ctx.recipe.stages[-1].algorithm.__class__.model_validate(algorithm)
    ctx.recipe.stages[-1] = ctx.recipe.stages[-1].model_copy(update={"algorithm": section})
    return ctx


def test_an_update_that_is_not_finite_is_skipped_and_its_rows_are_named(make_context, monkeypatch, caplog):
    ctx = spoiled(make_context, monkeypatch, (1,))
    run(ctx)
    first, second = logged(ctx)
    assert (first["updates/skipped"], second["updates/skipped"]) == (0.5, 0.0)
    assert math.isfinite(first["loss"]) and not ctx.base.roles.is_zero("policy")
    assert "rl step 1: the update is not finite (loss nan" in caplog.text
    assert "It comes from row" in caplog.text and "It is skipped." in caplog.text


def test_an_update_that_is_skipped_changes_nothing(make_context, monkeypatch):
    ctx = spoiled(make_context, monkeypatch, tuple(range(1, 100)), max_steps=1)
    before = {n: p.detach().clone() for n, p in ctx.base.model.named_parameters()}
    run(ctx)
    for name, parameter in ctx.base.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_too_many_updates_in_a_row_that_are_not_finite_stop_the_run(make_context, monkeypatch):
    ctx = spoiled(make_context, monkeypatch, tuple(range(1, 100)), max_bad_steps=2)
    with pytest.raises(GuardError, match=r"rl step 2: .*3 updates in a row were of no use"):
        run(ctx)


@pytest.mark.parametrize("where", ["update", pytest.param("scoring", marks=pytest.mark.slow)])
def test_out_of_memory_the_step_is_taken_again_in_smaller_parts(make_context, monkeypatch, caplog, where):
    algorithm = {"name": "ppo", "num_generations": 4, "num_minibatches": 2, "value": "own"}
    plain = outcome_of(with_coarse(make_context, algorithm=algorithm))
    refused = []

    def limited(original, place):
        def call(self, *given, **named):
            rows = len(given[place])
            if rows > 2:
                refused.append(rows)
                raise torch.OutOfMemoryError("out of memory")
            return original(self, *given, **named)

        return call

    if where == "update":
        monkeypatch.setattr(RoleForwards, "outputs", limited(RoleForwards.outputs, 0))
    else:
        monkeypatch.setattr(RoleForwards, "_fill_rows", limited(RoleForwards._fill_rows, 1))
    found = outcome_of(with_coarse(make_context, algorithm=algorithm))
    same(found, plain)
    assert refused and "out of memory. From here on at most" in caplog.text
    # What fits is remembered: the second step asks for too much no more.
    assert len(refused) <= 8


def test_a_gradient_that_is_not_finite_is_skipped_and_the_rows_of_the_update_are_named(
    make_context, monkeypatch, caplog
):
    ctx = spoiled(make_context, monkeypatch, (), max_steps=1)
    parameter = ctx.base.roles.parameters("policy")[1]
    calls = []

    def spoil(gradient):
        calls.append(1)
        return gradient * float("nan") if len(calls) == 1 else gradient

    original = Grpo.loss

    def loss(self, outputs, minibatch):
        if not calls:
            parameter.register_hook(spoil)
        return original(self, outputs, minibatch)

    monkeypatch.setattr(Grpo, "loss", loss)
    run(ctx)
    assert "gradient norm nan). It was made of row" in caplog.text and "and 13 more." in caplog.text
    assert logged(ctx)[0]["updates/skipped"] == 0.5 and not ctx.base.roles.is_zero("policy")


def test_out_of_memory_a_rollout_is_sampled_in_parts(make_context, monkeypatch, caplog):
    algorithm = {"name": "grpo", "num_generations": 4, "beta": 0.0}
    plain = outcome_of(with_coarse(make_context, algorithm=algorithm))
    original, asked = CachedSampler.sample, []

    def limited(self, requests, context=None):
        asked.append(len(requests))
        if len(requests) > 8:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, requests, context)

    monkeypatch.setattr(CachedSampler, "sample", limited)
    found = outcome_of(with_coarse(make_context, algorithm=algorithm))
    same(found, plain)
    assert asked == [16, 8, 8, 8, 8]
    assert "rl: out of memory. From here on at most 2 prompts are answered at once." in caplog.text


def test_what_does_not_fit_at_all_is_said(make_context, monkeypatch):
    def never(self, requests, context=None):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(CachedSampler, "sample", never)
    with pytest.raises(RlhfPeftError, match=r"rl: out of memory with 1 prompts .*rlhf-peft plan"):
        run(make_context(stage(eval={})))
