"""Fast paths are allowed by the recipe, and compared once with the plain path."""

import logging
import re
from typing import get_args

import pytest
import torch

from rlhf_peft import api
from rlhf_peft.engine.fast import NAMES, FastPaths
from rlhf_peft.engine.fast.fused_lora import FusedLora, FusedMlp
from rlhf_peft.errors import RecipeError
from rlhf_peft.recipe import load
from rlhf_peft.recipe.schema.sections import FastPath

PLAIN = torch.tensor([1.0, 2.0])


def test_a_path_that_gives_the_same_is_compared_once():
    asked = []
    fast = FastPaths()
    for _ in range(3):
        assert fast.verified_once("lean_decoder", lambda: asked.append(1) or PLAIN + 1e-6, lambda: PLAIN)
    assert len(asked) == 1


def raises():
    raise TypeError("another idea of a cache")


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (lambda: PLAIN + 0.1, "its result differs by up to 0.1"),
        (lambda: PLAIN[:1], r"its result has the shape \(1,\) instead of \(2,\)"),
        (raises, "it raised TypeError"),
    ],
)
def test_a_path_that_gives_another_result_is_given_up_with_a_line(caplog, result, reason):
    logging.getLogger("rlhf_peft").propagate = True
    fast = FastPaths()
    with caplog.at_level("INFO", "rlhf_peft"):
        assert not fast.verified_once("lean_decoder", result, lambda: PLAIN)
        assert not fast.verified_once("lean_decoder", lambda: PLAIN, lambda: PLAIN)
    (line,) = caplog.messages
    assert line.startswith("model.fast: lean_decoder is not used for this model: ")

    assert re.search(reason, line)


def test_running_out_of_memory_is_no_difference():
    def full():
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        FastPaths().verified_once("lean_decoder", full, lambda: PLAIN)


def test_modules_are_compared_one_by_one():
    fast, one, other = FastPaths(), torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    assert fast.verified_once("fused_lora", lambda: PLAIN, lambda: PLAIN, of=one)
    assert not fast.verified_once("fused_lora", lambda: -PLAIN, lambda: PLAIN, of=other)


@pytest.mark.parametrize("allowed", [False, [], ["gated_mlp"]])
def test_what_the_recipe_forbids_is_never_tried(allowed):
    assert not FastPaths(allowed).verified_once("lean_decoder", raises, raises)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'warp' is not a fast path; there are fused_lora"):
        FastPaths(["warp"])


def test_the_recipe_knows_every_name():
    assert set(get_args(FastPath)) == set(NAMES)


def base_of(*overrides):
    return api.load_base(load("quickstart", ["model.max_length=64", *overrides]))


def forwards(base):
    return {type(m.__dict__.get("forward")) for m in base.model.modules()} & {FusedLora, FusedMlp}


def test_the_recipe_switches_them_off():
    assert forwards(base_of()) == {FusedLora, FusedMlp}
    plain = base_of("model.fast=false")
    assert forwards(plain) == set() and not plain.forwards.shares
    some = base_of("model.fast=[fused_lora]")
    assert forwards(some) == {FusedLora} and not some.forwards.shares


def test_merging_that_is_forbidden_is_not_asked_for():
    with pytest.raises(RecipeError, match="merge_rollouts: true needs dense_weights"):
        load("quickstart", ["model.fast=false", "model.merge_rollouts=true"])


@pytest.mark.parametrize(
    ("shift", "is_same"), [(0.0, True), (0.01, True), (0.5, False), (float("nan"), False)]
)
def test_logits_in_half_precision_are_compared_by_their_log_probabilities(shift, is_same):
    """2 % of the largest logit would let a difference of 0.6 nats a token pass."""
    generator = torch.Generator().manual_seed(0)
    expected = (3.0 * torch.randn(4, 50, generator=generator)).bfloat16()
    expected[:, 0] = 30.0
    expected[:, 1] = 29.9
    other = expected.float()
    other[:, 1] += shift
    assert FastPaths().verified_once("lean_decoder", lambda: other, lambda: expected, logits=True) is is_same


def test_a_shift_of_all_logits_is_no_difference():
    expected = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert FastPaths().verified_once(
        "lean_decoder", lambda: expected.float() + 5.0, lambda: expected, logits=True
    )


@pytest.mark.parametrize(("dtype", "is_same"), [(None, False), (torch.bfloat16, True)])
def test_results_in_float32_of_a_model_in_half_precision(dtype, is_same):
    expected = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    other = expected + 0.01
    found = FastPaths().verified_once(
        "cuda_graphs", lambda: other, lambda: expected, logits=True, dtype=dtype
    )
    assert found is is_same


def test_a_path_that_is_given_up_warns_once_and_is_never_tried_again(caplog):
    logging.getLogger("rlhf_peft").propagate = True
    fast = FastPaths()
    with caplog.at_level("INFO", "rlhf_peft"):
        assert not fast.verified_once("cuda_graphs", raises, lambda: PLAIN, of="one", warns=True)
        assert not fast.verified_once("cuda_graphs", lambda: PLAIN, lambda: PLAIN, of="other", warns=True)
        fast.give_up("cuda_graphs", "again")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages == [
        "model.fast: cuda_graphs is not used any more: it raised TypeError. The plain way goes on."
    ]
    assert not fast.allows("cuda_graphs") and fast.allows("lean_decoder")
