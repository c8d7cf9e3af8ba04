"""Functions that code of others puts into the place of those that training stands on."""

import functools
import math
import os
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from rlhf_peft.kit.functions.replaced import FunctionSnapshot
from rlhf_peft.maths import masked

softmax = torch.nn.functional.softmax


@functools.wraps(softmax)
def other(*arguments, **named):
    """Says that it is torch's."""
    return softmax(*arguments, **named)


@pytest.mark.parametrize(
    ("owner", "name", "value", "called"),
    [
        (torch.nn.functional, "softmax", other, "torch.nn.functional.softmax"),
        (torch, "exp", None, "torch.exp"),
        (torch, "manual_seed", lambda seed: None, "torch.manual_seed"),
        (torch.Tensor, "softmax", other, "torch.Tensor.softmax"),
        (torch.Tensor, "backward", lambda self: None, "torch.Tensor.backward"),
        (torch.Tensor, "__add__", lambda self, o: self, "torch.Tensor.__add__"),
        (torch.nn.Linear, "forward", lambda self, x: x, "torch.nn.modules.linear.Linear.forward"),
        (torch.optim.AdamW, "step", lambda self: None, "torch.optim.adamw.AdamW.step"),
        (torch.optim, "AdamW", torch.optim.SGD, "torch.optim.AdamW"),
        (math, "exp", lambda x: 1.0, "math.exp"),
        (np, "mean", lambda x: 0.0, "numpy.mean"),
        (os, "replace", lambda a, b: None, "os.replace"),
        (masked, "masked_mean", lambda *a: 0.0, "rlhf_peft.maths.masked.masked_mean"),
    ],
)
def test_what_was_replaced_is_put_back_and_named(owner, name, value, called):
    real = getattr(owner, name)
    before = FunctionSnapshot()
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        assert before.put_back() == [called]
        assert getattr(owner, name) is real or getattr(owner, name) == real
        assert before.put_back() == []
    finally:
        if own is not None:
            setattr(owner, name, own)
        elif name in vars(owner):
            delattr(owner, name)


def test_what_is_new_or_a_packages_own_stays():
    before = FunctionSnapshot()
    torch.something_new = other
    real, torch.manual_seed = torch.manual_seed, torch.compiler.disable(torch.manual_seed)  # as torch does
    try:
        assert before.put_back() == []
    finally:
        torch.manual_seed = real
        del torch.something_new


def test_environment_variables_keep_their_values(monkeypatch):
    monkeypatch.setenv("GIVEN", "mine")
    monkeypatch.setenv("TAKEN", "mine")
    before = FunctionSnapshot()
    monkeypatch.setenv("GIVEN", "theirs")
    monkeypatch.delenv("TAKEN")
    monkeypatch.setenv("NEW", "theirs")
    before.put_back()
    assert os.environ["GIVEN"] == os.environ["TAKEN"] == "mine"
    assert before.new_variables() == ["NEW"]


def test_modules_that_are_odd_are_survived(monkeypatch):
    monkeypatch.setitem(sys.modules, "rlhf_peft.odd", None)
    monkeypatch.setitem(sys.modules, "rlhf_peft.odder", ModuleType("rlhf_peft.odder"))
    assert FunctionSnapshot().put_back() == []
