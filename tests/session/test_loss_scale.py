"""The scale goes as GradScaler's does, and is no part of runs that do not need it."""

import math

import pytest
import torch

from rlhf_peft.session import loss_scale
from rlhf_peft.session.loss_scale import FIRST, LossScale


def parameter():
    return torch.nn.Parameter(torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_have_none(dtype):
    scale, weight = LossScale("rl", dtype), parameter()
    scale.backward(weight.square().sum())
    scale.unscale([weight])
    assert weight.grad.tolist() == [4.0, 6.0]
    assert not scale.overflows(1, 0.5, math.inf)
    assert scale.metrics() == scale.state_dict() == {}


def test_gradients_are_scaled_and_unscaled_without_rounding():
    scale, weight, without = LossScale("rl", torch.float16), parameter(), parameter()
    loss = (weight / 3).sum()
    scale.backward(loss)
    assert weight.grad.tolist() == [FIRST * torch.tensor(1 / 3).item()] * 2
    scale.unscale([weight, without])
    assert weight.grad.tolist() == [torch.tensor(1 / 3).item()] * 2 and without.grad is None


def test_it_goes_as_that_of_torch(monkeypatch):
    monkeypatch.setattr(loss_scale, "INTERVAL", 3)
    weight = parameter()
    optimizer = torch.optim.SGD([weight], lr=0.0)
    theirs = torch.amp.GradScaler("cpu", init_scale=FIRST, growth_interval=3)
    mine = LossScale("rl", torch.float16)
    for step, finite in enumerate([0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0], 1):
        weight.grad = None
        theirs.scale(weight.sum() if finite else weight.sum() * math.inf).backward()
        theirs.step(optimizer)
        theirs.update()
        assert mine.overflows(step, 0.5, 1.0 if finite else math.inf) is not bool(finite)
        assert mine.value == theirs.get_scale(), step


def test_what_a_lower_scale_does_not_mend_is_no_matter_of_the_scale():
    scale = LossScale("rl", torch.float16)
    assert not scale.overflows(1, math.nan, math.nan) and scale.value == FIRST
    scale.value = 1.0
    assert not scale.overflows(1, 0.5, math.inf) and scale.value == 1.0


def test_it_goes_on_from_a_state():
    scale, other = LossScale("rl", torch.float16), LossScale("rl", torch.float16)
    scale.overflows(1, 0.5, math.inf)
    scale.overflows(2, 0.5, 1.0)
    other.load_state_dict(scale.state_dict())
    assert (other.value, other.taken) == (FIRST / 2, 1)
    other.load_state_dict({})  # of a run before there was a scale
    assert other.metrics() == {"loss_scale": FIRST / 2}
