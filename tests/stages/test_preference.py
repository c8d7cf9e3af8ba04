"""DPO and KTO through TRL on the shared base, the reference as a view."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from trl import DPOTrainer, KTOTrainer

from rlhf_peft.engine import POLICY, REFERENCE, SharedBase
from rlhf_peft.engine.roles import Roles
from rlhf_peft.errors import DataError, GuardError, RecipeError
from rlhf_peft.session.context import Context
from rlhf_peft.stages import preference, sft

from .conftest import MakeContext, policy_of, write


def stage(path: str, **changes: Any) -> dict[str, Any]:
    common = {"stage": "preference", "batch_size": 8, "max_steps": 4, "learning_rate": 3e-3}
    dataset = {"path": path, **changes.pop("dataset", {})}
    return {**common, "dataset": dataset, **changes}


def teach(path: str) -> dict[str, Any]:
    return {"stage": "sft", "dataset": {"path": path}, "batch_size": 8, "max_steps": 3, "learning_rate": 1e-2}


def run_all(ctx: Context) -> dict[str, float]:
    out: dict[str, float] = {}
    for part in ctx.recipe.stages:
        out = sft.run(part, ctx) if part.stage == "sft" else preference.run(part, ctx)
    return out


def lines(ctx: Context, name: str = "preference") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (ctx.run.path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == name]


@pytest.fixture
def reference_logps(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """What TRL's trainer computed for policy and reference in each forward of the policy's loss."""
    seen: list[dict[str, torch.Tensor]] = []
    for trainer in (DPOTrainer, KTOTrainer):
        monkeypatch.setattr(trainer, "_compute_loss", _spying(trainer._compute_loss, seen))
    return seen


def keep(record: dict[str, torch.Tensor], key: str) -> Any:
    """A hook that notes the last forward: KTO's KL term comes first."""

    def hook(module: Any, args: Any, output: Any) -> None:
        record[key] = output.log_probs.detach().clone()

    return hook


def _spying(original: Any, seen: list[dict[str, torch.Tensor]]) -> Any:
    def spy(self: Any, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        record = {"ids": inputs["input_ids"], "train": torch.tensor(self.model.training)}
        handles = [
            module.register_forward_hook(keep(record, key))
            for key, module in (("policy", model), ("reference", self.ref_model))
        ]
        try:
            return original(self, model, inputs, return_outputs)
        finally:
            for handle in handles:
                handle.remove()
            seen.append(record)

    return spy


def role_logps(base: SharedBase, role: str, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), base.role(role, train=False):
        return base.forwards.logps(base.forwards.hidden(ids), ids, torch.ones_like(ids, dtype=torch.bool))[0]


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("after_sft", [False, True], ids=["from-base", "from-sft"])
def test_reference_is_the_policy_before_the_first_update(
    make_context: MakeContext,
    demonstrations: str,
    pairs: str,
    reference_logps: list[dict[str, torch.Tensor]],
    method: str,
    after_sft: bool,
) -> None:
    first = [teach(demonstrations)] if after_sft else []
    ctx = make_context(*first, stage(pairs, method=method))
    run_all(ctx)
    base = ctx.base
    # Before the first update the two say the same, so the loss is that of no preference.
    begin = reference_logps[0]
    assert torch.allclose(begin["policy"], begin["reference"], atol=1e-4)
    expected = math.log(2) if method == "dpo" else 0.5
    rows = lines(ctx)
    assert rows[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert rows[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    # Then the policy moves and the reference does not.
    assert rows[-1]["loss"] < expected - 0.01
    end = reference_logps[-1]
    assert not torch.allclose(end["policy"], end["reference"], atol=1e-2)
    assert base.roles.adapter_of(REFERENCE) == (REFERENCE if after_sft else None)
    for record in (begin, end):
        scored = record["reference"] != 0
        again = role_logps(base, REFERENCE, record["ids"])[:, 1:]
        assert torch.allclose(record["reference"][scored], again[scored], atol=1e-4)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_only_the_policy_changes(
    make_context: MakeContext, demonstrations: str, pairs: str, method: str
) -> None:
    ctx = make_context(teach(demonstrations), stage(pairs, method=method))
    base = ctx.base
    sft.run(ctx.recipe.stages[0], ctx)
    base.roles.add("reward-0", like=POLICY, head=True)
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    head = {name: value.clone() for name, value in base.roles.heads["reward-0"].state_dict().items()}
    preference.run(ctx.recipe.stages[1], ctx)
    after = dict(base.model.named_parameters())
    for name, value in before.items():
        same = torch.equal(after[name], value)
        assert same is (f".{POLICY}." not in name), name
    for name, value in before.items():
        if f".{POLICY}." in name:
            assert torch.equal(after[name.replace(f".{POLICY}.", f".{REFERENCE}.")], value)
    assert all(
        torch.equal(value, head[name]) for name, value in base.roles.heads["reward-0"].state_dict().items()
    )
    assert {p.dtype for p in base.roles.parameters(POLICY)} == {torch.float32}
    assert not any(p.requires_grad for p in base.model.parameters())


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_learns_and_tells(make_context: MakeContext, pairs: str, method: str) -> None:
    ctx = make_context(stage(pairs, method=method, dataset={"eval_fraction": 0.25}, eval={"every": 2}))
    out = run_all(ctx)
    assert out["eval_rewards/accuracies"] > 0.9 and out["eval_rewards/margins"] > 0.05
    assert out["loss_last"] < out["loss_first"]
    assert ctx.reporter.stages == [("preference", 4)]
    rows = lines(ctx)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 2, 4]
    wanted = {
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    }
    for row in rows[1:]:
        assert wanted <= row.keys()
        named = {key.removeprefix("eval_") for key in row.keys() - {"stage", "step", "time"}}
        assert named <= preference.METRICS.keys()
    assert (ctx.run.path / "adapters" / "policy" / "adapter_model.safetensors").is_file()


def test_label_smoothing_and_beta_reach_the_loss(make_context: MakeContext, pairs: str) -> None:
    """The formula of `loss`, from the margin that is logged (one pair an update)."""
    changes = {"label_smoothing": 0.2, "beta": 0.5, "batch_size": 1, "max_steps": 3}
    ctx = make_context(stage(pairs, **changes))
    run_all(ctx)
    for row in lines(ctx):
        margin = torch.tensor(row["rewards/margins"], dtype=torch.float64)
        logsigmoid = torch.nn.functional.logsigmoid
        loss = (-0.8 * logsigmoid(margin) + 0.2 * logsigmoid(-margin)) / 0.6
        assert row["loss"] == pytest.approx(float(loss), rel=1e-4, abs=1e-5)


def test_kto_weights_and_labels(make_context: MakeContext, labelled: str) -> None:
    losses = []
    for weight in (1.0, 2.0):
        ctx = make_context(stage(labelled, method="kto", max_steps=1, undesirable_weight=weight))
        run_all(ctx)
        losses.append(lines(ctx)[0]["loss"])
    assert losses[0] == pytest.approx(0.5) and losses[1] > 0.55


def test_kto_keeps_no_row_alone(
    make_context: MakeContext, labelled: str, reference_logps: list[dict[str, torch.Tensor]]
) -> None:
    changes = {"max_steps": 7, "batch_size": 4, "dataset": {"eval_fraction": 0.3, "split": "train[:24]"}}
    ctx = make_context(stage(labelled, method="kto", **changes))
    run_all(ctx)
    assert min(len(record["ids"]) for record in reference_logps) > 1


def test_kto_mixes_good_and_bad(
    make_context: MakeContext, pairs: str, reference_logps: list[dict[str, torch.Tensor]]
) -> None:
    """TRL takes KTO's rows in order, where all chosen rows come first."""
    ctx = make_context(stage(pairs, method="kto", max_steps=3))
    run_all(ctx)
    for row in lines(ctx):
        assert {"rewards/chosen", "rewards/rejected"} <= row.keys()


def test_kto_is_the_same_however_many_rows_go_into_a_forward(
    make_context: MakeContext, tmp_path: Any
) -> None:
    """Its KL is of the whole update. Here it grows, for all answers are alike and wanted."""
    answers = [
        {"prompt": f"Who is {i}?", "completion": f" It is the fox of {i}.", "label": True} for i in range(30)
    ]
    path, found = write(tmp_path / "wanted.jsonl", answers), []
    for tokens in (16384, 1):
        ctx = make_context(
            stage(path, method="kto", beta=0.5, learning_rate=1e-2),
            model={"tokens_per_forward": tokens},
        )
        run_all(ctx)
        found.append(([(row["loss"], row["kl"]) for row in lines(ctx)], policy_of(ctx.base)))
    (whole, one), (parts, other) = found
    assert torch.allclose(torch.tensor(whole), torch.tensor(parts), atol=1e-4)
    assert max(kl for _, kl in whole) > 0.01
    assert all(torch.allclose(one[key], other[key], atol=1e-4) for key in one)


def test_kto_needs_two_rows(make_context: MakeContext, labelled: str) -> None:
    ctx = make_context(stage(labelled, method="kto", batch_size=1))
    with pytest.raises(RecipeError, match="at least 2"):
        run_all(ctx)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_checkpointing_gives_the_same_updates(make_context: MakeContext, pairs: str, method: str) -> None:
    found = []
    for on in (False, True):
        ctx = make_context(stage(pairs, method=method, max_steps=2), model={"gradient_checkpointing": on})
        functions = [vars(m).get("_gradient_checkpointing_func") for m in ctx.base.lm.modules()]
        run_all(ctx)
        assert [vars(m).get("_gradient_checkpointing_func") for m in ctx.base.lm.modules()] == functions
        found.append(policy_of(ctx.base))
    assert all(torch.allclose(found[0][key], found[1][key], atol=1e-5) for key in found[0])


def test_dropout_is_off_and_back_after(make_context: MakeContext, pairs: str) -> None:
    ctx = make_context(stage(pairs, max_steps=1), lora={"dropout": 0.5})
    run_all(ctx)
    assert lines(ctx)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    drops = [
        m.p for n, m in ctx.base.model.named_modules() if isinstance(m, torch.nn.Dropout) and "lora" in n
    ]
    assert set(drops) == {0.5}


def test_a_wrong_reference_stops_the_run(
    make_context: MakeContext, demonstrations: str, pairs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The raw base as the reference of a policy that has been trained."""
    ctx = make_context(teach(demonstrations), stage(pairs))
    sft.run(ctx.recipe.stages[0], ctx)
    monkeypatch.setattr(Roles, "freeze_reference", lambda roles: roles._adapter_of.update({REFERENCE: None}))
    with pytest.raises(GuardError, match="differ by"):
        preference.run(ctx.recipe.stages[1], ctx)
    ctx.base.roles._adapter_of.pop(REFERENCE)


def test_a_policy_that_says_no_number_stops_the_run(
    make_context: MakeContext, demonstrations: str, pairs: str
) -> None:
    ctx = make_context(stage(pairs))
    with torch.no_grad():
        ctx.base.roles.parameters(POLICY)[-1].fill_(torch.nan)
    with pytest.raises(GuardError, match="differ by nan"):
        preference.run(ctx.recipe.stages[0], ctx)


def test_wrong_columns_are_refused(make_context: MakeContext, tmp_path: Any) -> None:
    path = write(tmp_path / "bad.jsonl", [{"prompt": "a", "better": "b", "worse": "c"}])
    ctx = make_context(stage(path))
    with pytest.raises(DataError, match="better, worse"):
        run_all(ctx)
