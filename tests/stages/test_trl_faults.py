"""What goes wrong in a stage that leaves its loop to TRL: numbers that are not finite, memory that does not suffice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import DPOTrainer, KTOTrainer, SFTTrainer

from rlhf_peft.engine import POLICY
from rlhf_peft.errors import GuardError, RlhfPeftError
from rlhf_peft.session.context import Context
from rlhf_peft.stages import preference, sft

from .conftest import MakeContext, policy_of, write

TRAINERS = {"sft": SFTTrainer, "dpo": DPOTrainer, "kto": KTOTrainer}
ROWS = {"sft": "demonstrations", "dpo": "pairs", "kto": "labelled"}
METHODS = sorted(TRAINERS)


def stage(method: str, path: str, **changes: Any) -> dict[str, Any]:
    kind = {"stage": "sft"} if method == "sft" else {"stage": "preference", "method": method}
    common = {"batch_size": 8, "max_steps": 3, "learning_rate": 3e-3, "dataset": {"path": path}}
    return {**kind, **common, **changes}


def run(ctx: Context) -> dict[str, float]:
    part = ctx.recipe.stages[0]
    return sft.run(part, ctx) if part.stage == "sft" else preference.run(part, ctx)


def lines(ctx: Context) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ctx.run.path / "metrics.jsonl").read_text().splitlines()]


MARK = "hare hare hare hare hare"


def marked(path: str, row: int) -> str:
    """The rows, one of them with words in its prompt that no other has."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    prompt = rows[row - 1]["prompt"]
    if isinstance(prompt, str):
        rows[row - 1]["prompt"] = f"{MARK} {prompt}"
    else:
        prompt[0]["content"] = f"{MARK} {prompt[0]['content']}"
    return write(Path(path), rows)


def spoil(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Make the loss of every batch that holds the marked row not a number."""
    trainer = TRAINERS[method]
    original = trainer.compute_loss

    def spoiled(self: Any, model: Any, inputs: Any, return_outputs: bool = False, **named: Any) -> Any:
        hit = any(MARK in self.processing_class.decode(ids) for ids in inputs["input_ids"])
        out = original(self, model, inputs, return_outputs=return_outputs, **named)
        factor = float("nan") if hit and self.model.training else 1.0
        return (out[0] * factor, *out[1:]) if return_outputs else out * factor

    monkeypatch.setattr(trainer, "compute_loss", spoiled)


@pytest.mark.parametrize("method", METHODS)
def test_the_row_whose_loss_is_not_finite_is_named(
    make_context: MakeContext,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    method: str,
) -> None:
    # One pass over 24 rows, three updates: row 5 is in one of them.
    ctx = make_context(stage(method, marked(request.getfixturevalue(ROWS[method]), 5)))
    spoil(monkeypatch, method)
    run(ctx)
    assert caplog.text.count("the update is not finite (loss nan") == 1
    assert "It comes from row 5. It is skipped." in caplog.text
    skipped = [line["updates/skipped"] for line in lines(ctx) if "updates/skipped" in line]
    assert sorted(skipped) == [0.0, 0.0, 1.0]
    assert all(bool(p.isfinite().all()) for p in ctx.base.roles.parameters(POLICY))
    assert not ctx.base.roles.is_zero(POLICY)


@pytest.mark.parametrize("method", METHODS)
def test_too_many_gradients_that_are_not_finite_stop_the_run(
    make_context: MakeContext,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    path, trainer = request.getfixturevalue(ROWS[method]), TRAINERS[method]
    original = trainer.compute_loss

    def spoiled(*given: Any, **named: Any) -> Any:
        out = original(*given, **named)
        loss = out[0] if isinstance(out, tuple) else out
        if loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return out

    monkeypatch.setattr(trainer, "compute_loss", spoiled)
    ctx = make_context(stage(method, path, max_steps=6, max_bad_steps=2))
    told = r"step 3: .*gradient norm nan.*made of row \d+.* and \d more.*3 updates in a row"
    with pytest.raises(GuardError, match=told) as caught:
        run(ctx)
    assert caught.value.exit_code == 3 and ctx.base.roles.is_zero(POLICY)


def outcome(ctx: Context) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    run(ctx)
    return policy_of(ctx.base), lines(ctx)


@pytest.mark.parametrize("when", [0, 1, 5])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_out_of_memory_the_update_is_done_again_with_fewer_rows(
    make_context: MakeContext,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    method: str,
    when: int,
) -> None:
    """In the evaluation before the first update, in the first update, in a later one."""
    path = request.getfixturevalue(ROWS[method])
    held = {"eval": {"every": 2, "dataset": {"path": path}, "size": 8}, "learning_rate": 1e-3}
    plain, expected = outcome(make_context(stage(method, path, max_steps=4, **held)))
    trainer, calls, refused = TRAINERS[method], [0], []
    original = trainer.compute_loss

    def limited(self: Any, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        rows = len(inputs["input_ids"]) // (2 if method == "dpo" else 1)
        calls[0] += 1
        if rows > 4 and calls[0] > when:
            refused.append(rows)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(self, model, inputs, *given, **named)

    monkeypatch.setattr(trainer, "compute_loss", limited)
    found, told = outcome(make_context(stage(method, path, max_steps=4, **held)))
    assert refused == [8] and "out of memory. From here on 4 rows go into one forward." in caplog.text
    assert [line["step"] for line in told] == [line["step"] for line in expected]
    for name, weight in plain.items():
        assert torch.allclose(found[name], weight, atol=1e-5), name
    for mine, theirs in zip(told, expected, strict=True):
        assert mine["step"] == theirs["step"] and mine.keys() == theirs.keys()
        if "loss" in mine:
            assert math.isclose(mine["loss"], theirs["loss"], rel_tol=1e-4)


def test_what_does_not_fit_at_all_is_said(
    make_context: MakeContext, demonstrations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SFTTrainer, "compute_loss", never)
    with pytest.raises(
        RlhfPeftError, match=r"sft: out of memory with 1 rows in one forward .*rlhf-peft plan"
    ):
        run(make_context(stage("sft", demonstrations)))


def test_kto_with_an_odd_number_of_rows_does_not_try_for_ever(
    make_context: MakeContext, labelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def never(*given: Any, **named: Any) -> Any:
        calls.append(1)
        assert len(calls) < 5
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(KTOTrainer, "compute_loss", never)
    with pytest.raises(RlhfPeftError, match=r"preference: out of memory with 7 rows in one forward"):
        run(make_context(stage("kto", labelled, batch_size=7)))
