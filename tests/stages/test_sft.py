"""SFT through TRL on the shared base."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from peft import PeftModel
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

from rlhf_peft.engine import POLICY
from rlhf_peft.errors import DataError, GuardError, UsageError
from rlhf_peft.stages import sft
from rlhf_peft.trl_bridge.rows import eval_batch, longest_row, micro_batch, rows_for
from rlhf_peft.trl_bridge.trainer import quiet_trainer
from rlhf_peft.trl_bridge.training import arguments

from .conftest import MakeContext, policy_of, write


def stage(path: str, **changes: Any) -> dict[str, Any]:
    common = {"stage": "sft", "batch_size": 8, "max_steps": 5, "learning_rate": 1e-2, "optimizer": "adamw"}
    dataset = {"path": path, **changes.pop("dataset", {})}
    return {**common, "dataset": dataset, **changes}


def run(ctx: Any, index: int = 0) -> dict[str, float]:
    return sft.run(ctx.recipe.stages[index], ctx)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the trainer's forwards are given."""
    seen: list[dict[str, Any]] = []
    original = SFTTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen.append({"train": self.model.training, **{k: v for k, v in inputs.items() if torch.is_tensor(v)}})
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "compute_loss", spy)
    return seen


def test_adamw_has_the_coefficients_of_the_recipe(make_context: MakeContext, demonstrations: str) -> None:
    given = {"adam_epsilon": 1e-6, "adam_beta1": 0.8, "adam_beta2": 0.9}
    ctx = make_context(stage(demonstrations, **given))
    args = arguments(ctx.recipe.stages[0], ctx, folder="x", micro=8, evaluated=0)
    assert {key: args[key] for key in given} == given


def test_learns_and_tells(make_context: MakeContext, demonstrations: str) -> None:
    ctx = make_context(stage(demonstrations, dataset={"eval_fraction": 0.25}, eval={"every": 2}))
    before = {name: p.clone() for name, p in ctx.base.model.named_parameters() if "lora" not in name}
    out = run(ctx)
    assert out["loss_last"] < out["loss_first"] - 1.0
    assert out["eval_loss"] < out["loss_first"] - 1.0
    assert out["steps"] == 5 and out["num_tokens"] > 0 and out["seconds"] > 0
    assert ctx.reporter.stages == [("sft", 5)]
    lines = [json.loads(line) for line in (ctx.run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 2, 4, 5]
    for line in lines[1:]:
        assert {
            "loss",
            "learning_rate",
            "grad_norm",
            "num_tokens",
            "mean_token_accuracy",
            "epoch",
        } <= line.keys()
        named = {key.removeprefix("eval_") for key in line.keys() - {"stage", "step", "time"}}
        assert named <= sft.METRICS.keys()
    after = dict(ctx.base.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {p.dtype for p in ctx.base.roles.parameters(POLICY)} == {torch.float32}


def test_prints_sends_and_writes_nothing(
    make_context: MakeContext,
    demonstrations: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **_: pytest.fail("telemetry"))
    monkeypatch.chdir(tmp_path)
    ctx = make_context(stage(demonstrations, max_steps=1, dataset={"eval_fraction": 0.25}))
    capfd.readouterr()
    run(ctx)
    assert capfd.readouterr() == ("", "")
    folder = tmp_path / "runs" / "run"
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    policy = [
        f"adapters/policy/{name}"
        for name in ("adapter_config.json", "adapter_model.safetensors", "base.json")
    ]
    assert files == [".lock", *policy, "manifest.json", "metrics.jsonl"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demonstrations.jsonl", "runs"]


def test_saved_adapter_loads_in_plain_peft(make_context: MakeContext, demonstrations: str) -> None:
    ctx = make_context(stage(demonstrations, max_steps=2), model={"quantization": "none"})
    run(ctx)
    ids = torch.tensor([[1, 7, 9, 11, 30]])
    with torch.no_grad(), ctx.base.role(POLICY, train=False):
        ours = ctx.base.lm(input_ids=ids).logits
    fresh = AutoModelForCausalLM.from_pretrained(ctx.base.loaded.spec.location, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(fresh, str(ctx.run.path / "adapters" / "policy")).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids).logits, ours, atol=1e-5)


def test_only_completions_are_trained(
    make_context: MakeContext, demonstrations: str, batches: list[dict[str, Any]]
) -> None:
    ctx = make_context(stage(demonstrations, max_steps=1))
    run(ctx)
    tokenizer = ctx.base.tokenizer
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            trained = tokenizer.decode(ids[labels != -100])
            assert trained.strip().startswith("The") and trained.endswith(tokenizer.eos_token)
            assert "Tell" not in trained and "Tell" in tokenizer.decode(ids[labels == -100])


@pytest.mark.parametrize("only", [True, False])
def test_assistant_only(
    make_context: MakeContext, conversations: str, batches: list[dict[str, Any]], only: bool
) -> None:
    ctx = make_context(stage(conversations, max_steps=1, assistant_only_loss=only))
    run(ctx)
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            trained = ctx.base.tokenizer.decode(ids[labels != -100])
            assert ("friend" in trained and "kind" in trained) and ("Who" in trained) is not only


def test_packing_trains_on_the_same_tokens(
    make_context: MakeContext, demonstrations: str, batches: list[dict[str, Any]]
) -> None:
    """All rows in one update: packed rows do not see each other, so the loss is that of single rows."""
    whole = {"max_steps": 1, "warmup": 0}
    single = stage(demonstrations, name="single", batch_size=24, **whole)
    packed = stage(demonstrations, name="packed", batch_size=1, packing=True, **whole)
    model = {"max_length": 512, "quantization": "none"}
    ctx = make_context(single, model=model)
    run(ctx)
    plain = ctx.reporter.steps[-1][2], policy_of(ctx.base)
    del batches[:]
    ctx = make_context(packed, model=model)
    run(ctx)
    together = ctx.reporter.steps[-1][2], policy_of(ctx.base)
    assert len(batches) == 1 and batches[0]["input_ids"].shape[0] == 1
    assert together[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-4)
    assert together[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-3)


def test_micro_batches_change_nothing(
    make_context: MakeContext, demonstrations: str, batches: list[dict[str, Any]]
) -> None:
    found = []
    for tokens, size in ((16384, 8), (64, 4), (1, 1)):
        del batches[:]
        ctx = make_context(stage(demonstrations, max_steps=2), model={"tokens_per_forward": tokens})
        run(ctx)
        assert {len(batch["input_ids"]) for batch in batches} == {size}
        assert ctx.reporter.steps[1][2]["epoch"] == pytest.approx(2 * 8 / 24)
        found.append([step[2][key] for step in ctx.reporter.steps for key in ("loss", "grad_norm")])
    assert found[1] == pytest.approx(found[0], rel=1e-3) and found[2] == pytest.approx(found[0], rel=1e-3)


def test_dropout_is_on_in_training_and_back_after(make_context: MakeContext, demonstrations: str) -> None:
    ctx = make_context(stage(demonstrations, max_steps=1), lora={"dropout": 0.5})
    drops = [m for n, m in ctx.base.model.named_modules() if isinstance(m, torch.nn.Dropout) and "lora" in n]
    seen: list[tuple[bool, float]] = []
    handle = drops[0].register_forward_hook(lambda m, *_: seen.append((m.training, m.p)))
    run(ctx)
    handle.remove()
    assert set(seen) == {(True, 0.5)}
    assert all(m.p == 0.5 and not m.training for m in drops)


def test_a_later_accelerator_starts_afresh(make_context: MakeContext, demonstrations: str) -> None:
    outer = Accelerator(cpu=True, gradient_accumulation_steps=3)
    before = [dict(state._shared_state) for state in (PartialState, AcceleratorState, GradientState)]
    environment = dict(os.environ)
    ctx = make_context(stage(demonstrations, max_steps=1))
    run(ctx)
    assert [dict(state._shared_state) for state in (PartialState, AcceleratorState, GradientState)] == before
    assert dict(os.environ) == environment
    assert outer.gradient_accumulation_steps == 3 and outer.mixed_precision == "no"
    prepared = outer.prepare(torch.nn.Linear(2, 2))
    outer.backward(prepared(torch.ones(1, 2)).sum())


def test_init_is_an_earlier_run(make_context: MakeContext, demonstrations: str, tmp_path: Path) -> None:
    ctx = make_context(stage(demonstrations, name="first"))
    first = run(ctx)
    (tmp_path / "runs" / "run").rename(tmp_path / "earlier")
    ctx = make_context(stage(demonstrations, max_steps=1, init={"policy": str(tmp_path / "earlier")}))
    assert run(ctx)["loss_first"] < first["loss_first"] - 1.0


def test_the_same_seed_gives_the_same_adapter(make_context: MakeContext, demonstrations: str) -> None:
    states = []
    for _ in range(2):
        ctx = make_context(stage(demonstrations, max_steps=2), lora={"dropout": 0.2})
        run(ctx)
        states.append(policy_of(ctx.base))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question": "a", "answer": "b"}], ["question", "prompt", "completion", "columns="]),
        ([{"prompt": "one " * 90, "completion": "two"}], ["row 1", "tokens", "max_length"]),
        ([{"prompt": "one", "completion": ""}], ["row 1", "completion", "empty"]),
    ],
)
def test_bad_rows_are_refused(
    make_context: MakeContext, tmp_path: Path, rows: list[dict[str, Any]], words: list[str]
) -> None:
    ctx = make_context(stage(write(tmp_path / "bad.jsonl", rows)))
    with pytest.raises(DataError) as caught:
        run(ctx)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_loss_that_is_not_finite_stops_the_run(make_context: MakeContext, demonstrations: str) -> None:
    ctx = make_context(stage(demonstrations))
    with torch.no_grad():
        ctx.base.roles.parameters(POLICY)[1].fill_(float("nan"))
    with pytest.raises(GuardError, match="not finite"):
        run(ctx)
    assert not (ctx.run.path / "adapters" / "policy" / "adapter_model.safetensors").exists()
    assert not any(p.requires_grad for p in ctx.base.model.parameters())


def test_optimizers_of_gpus_are_refused_elsewhere(make_context: MakeContext, demonstrations: str) -> None:
    ctx = make_context(stage(demonstrations, optimizer="paged_adamw_8bit"))
    with pytest.raises(UsageError, match="needs a CUDA GPU"):
        run(ctx)


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine"])
def test_learning_rates(make_context: MakeContext, demonstrations: str, scheduler: str) -> None:
    """A warmup of 2 of 5 updates, then the shape."""
    ctx = make_context(stage(demonstrations, lr_scheduler=scheduler, warmup=0.4, learning_rate=1e-3))
    run(ctx)
    found = [step[2]["learning_rate"] * 1e3 for step in ctx.reporter.steps]
    after = {"constant": [1, 1, 1], "linear": [1, 2 / 3, 1 / 3], "cosine": [1, 0.75, 0.25]}[scheduler]
    assert found == pytest.approx([0, 0.5, *after])


@pytest.mark.parametrize("warmup", [0.0, 0.03])
def test_short_runs_learn_from_the_first_update(
    make_context: MakeContext, demonstrations: str, warmup: float
) -> None:
    ctx = make_context(stage(demonstrations, max_steps=1, warmup=warmup))
    before = policy_of(ctx.base)
    run(ctx)
    assert any(not torch.equal(value, before[name]) for name, value in policy_of(ctx.base).items())


def test_checkpointing_gives_the_same_updates(make_context: MakeContext, demonstrations: str) -> None:
    states = []
    for on in (False, True):
        ctx = make_context(stage(demonstrations, max_steps=2), model={"gradient_checkpointing": on})
        run(ctx)
        flag = "is_activation_checkpointing"  # its name since transformers 5.23
        flag = flag if hasattr(type(ctx.base.lm), flag) else "is_gradient_checkpointing"
        assert getattr(ctx.base.lm, flag) is on
        states.append(policy_of(ctx.base))
    assert all(torch.allclose(states[0][key], states[1][key], atol=1e-5) for key in states[0])


def test_micro_batch() -> None:
    assert micro_batch(16, 100, 450) == 4
    assert micro_batch(12, 100, 700) == 6
    assert micro_batch(16, 1000, 10) == 1
    assert micro_batch(15, 1000, 10, at_least=2) == 3
    assert micro_batch(7, 1000, 10, at_least=2) == 7
    assert micro_batch(1, 1, 10, at_least=2) == 1


def test_eval_batch() -> None:
    assert eval_batch(20, 16) == 10
    assert eval_batch(3, 16) == 3
    assert eval_batch(257, 16) == 13
    assert eval_batch(5, 1) == 1


def test_longest_row_is_exact_for_few_rows(make_context: MakeContext, demonstrations: str) -> None:
    ctx = make_context(stage(demonstrations))
    rows, held_out = rows_for(ctx.recipe.stages[0], ctx, "sft")
    assert held_out is None
    assert longest_row(rows) == max(map(len, rows["input_ids"]))


def test_ours_keeps_the_trainer() -> None:
    made = quiet_trainer(SFTTrainer)
    assert issubclass(made, SFTTrainer) and made.__name__ == "SFTTrainer"
