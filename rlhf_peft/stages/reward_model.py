"""Reward modelling: Bradley-Terry on one or several small adapters with scalar heads.

TRL's RewardTrainer would need a model of its own for each head and would save the whole base; the loop here is short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from .. import maths
from ..data import Pair, encode_pairs, length_batches, pad_right, require
from ..engine import POLICY, SharedBase
from ..errors import DataError
from ..recipe.schema import RewardModelStage
from ..session.context import Context, lora_spec, total_steps
from ..session.non_finite import NonFiniteGuard
from ..session.optimizers import advance, make_optimizer, warmup_steps
from ..session.token_budget import TokenBudget

METRICS: dict[str, str] = {
    "loss": "mean over pairs of -p log s(d) - (1 - p) log s(-d), d = r_chosen - r_rejected - margin, s the sigmoid",
    "accuracy": "share of the update's pairs with r_chosen > r_rejected",
    "margin": "mean over the update's pairs of r_chosen - r_rejected",
    "grad_norm": "norm of the gradient before clipping",
    "updates/skipped": "1 where the update was skipped because loss or gradient were not finite",
    "learning_rate": "of the adapter and its head, in this update",
    "num_tokens": "tokens read so far",
    "epoch": "passes over the pairs so far",
    "head": "which head of an ensemble the update was of",
    "eval/accuracy": "share of held-out pairs with r_chosen > r_rejected; of an ensemble, by the mean of its heads",
    "eval/margin": "mean over held-out pairs of r_chosen - r_rejected",
    "eval/loss": "Bradley-Terry loss on held-out pairs",
    "eval/ece": "expected calibration error: mean over 10 bins of |s(|d|) - share where the higher-scored is better|",
    "eval/<name>/accuracy": "accuracy of one head of an ensemble",
    "eval/<name>/margin": "margin of one head of an ensemble",
    "eval/<name>/loss": "loss of one head of an ensemble",
    "eval/<name>/ece": "expected calibration error of one head of an ensemble",
}


def run(stage: RewardModelStage, ctx: Context) -> dict[str, Any]:
    """Train the reward roles; returns held-out accuracy, margin and calibration."""
    # 1. Pairs, and those held out.
    pairs, held_out = _pairs(stage, ctx)
    steps = total_steps(stage, len(pairs))
    ctx.reporter.stage(stage.name, steps * stage.ensemble)
    # 2. One adapter and head after the other, each with its own initialisation and data order.
    scoring = TokenBudget(stage.name, ctx.recipe.model.tokens_per_forward)
    roles = [f"reward-{i}" for i in range(stage.ensemble)]
    for extra in [role for role in ctx.base.roles.names if role.startswith("reward-") and role not in roles]:
        ctx.base.roles.remove(extra)
    # An ensemble that is taken up in the middle has some of its members already, and one in part.
    state = ctx.saver.state(stage)
    first = 0 if state is None else state["member"]
    for role in roles[:first]:
        _begin(stage, ctx, role)
    for number, role in enumerate(roles[first:], first):
        _begin(stage, ctx, role)
        mean, std = _moments(stage, ctx.base, role, pairs, scoring)
        Trainer(stage, ctx, number, pairs, held_out, steps, scoring).train(state)
        state = None
        _normalise(stage, ctx.base, role, pairs, scoring, mean, std)
        ctx.save_role(stage.name, steps * (number + 1), role)
    # 3. What the ensemble as a whole knows.
    metrics: dict[str, float] = {}
    if held_out:
        chosen, rejected = _judged(ctx.base, roles, held_out, scoring)
        metrics = {f"eval/{key}": value for key, value in describe(chosen, rejected, held_out).items()}
        ctx.samples(_samples(stage.name, steps * stage.ensemble, held_out, chosen - rejected, ctx.base))
        ctx.log(stage.name, steps * stage.ensemble, metrics)
    return {"metrics": metrics, "pairs": len(pairs), "held_out": len(held_out)}


def _pairs(stage: RewardModelStage, ctx: Context) -> tuple[Sequence[Pair], Sequence[Pair]]:
    rows, kept = ctx.train_and_held_out(stage)
    encoder = ctx.encoder(stage.dataset)

    def encode(dataset: Any, source: str, say: bool = True) -> Sequence[Pair]:
        require(dataset, "reward_model", source, stage=stage.name, warn=say)
        return encode_pairs(
            dataset,
            encoder,
            on_bad_row=stage.dataset.on_bad_row,
            on_long_row=stage.dataset.on_long_row,
            source=source,
            stage=stage.name,
        )

    source = stage.dataset.path or str(stage.dataset.name)
    pairs = encode(rows, source)
    if len(pairs) < 2:
        raise DataError(f"{source}: {len(pairs)} usable pairs are too few for a reward model.")
    if kept is None:
        return pairs, []
    held_out, size = encode(kept, source, say=False), stage.eval.size
    if len(held_out) > size:
        order = torch.randperm(len(held_out), generator=ctx.generator(stage.name, "eval")).tolist()
        held_out = [held_out[i] for i in sorted(order[:size])]
    return pairs, held_out


def _begin(stage: RewardModelStage, ctx: Context, role: str) -> None:
    """Start a role from what `init` names, else from the policy's adapter if it was trained, else from zero."""
    base = ctx.base
    if "reward" in stage.init:
        base.roles.load(role, stage.init["reward"], head=True)
        return
    from_policy = stage.lora is None and not base.roles.is_zero(POLICY)
    lora = None if stage.lora is None else lora_spec(stage.lora)
    base.roles.add(role, like=POLICY if from_policy else None, lora=lora, head=True)


def _moments(
    stage: RewardModelStage, base: SharedBase, role: str, pairs: Sequence[Pair], budget: TokenBudget
) -> tuple[float, float]:
    """Mean and standard deviation that the chosen answers' scores are to have after training: 0 and 1.

    A head that begins from an earlier one keeps that one's scale instead, so that the scores of several rounds can be
    compared: what the earlier head gave to the same answers.
    """
    if stage.normalize == "none" or "reward" not in stage.init:
        return 0.0, 1.0
    scores = _chosen_scores(base, role, pairs, budget)
    return float(scores.mean()), max(float(scores.std()), 1e-6)


def _normalise(
    stage: RewardModelStage,
    base: SharedBase,
    role: str,
    pairs: Sequence[Pair],
    budget: TokenBudget,
    mean: float,
    std: float,
) -> None:
    """Shift the trained head so that chosen answers have this mean, and scale it if asked."""
    if stage.normalize != "none":
        scores = _chosen_scores(base, role, pairs, budget)
        base.roles.head(role).normalise(scores, spread=stage.normalize == "standardize", mean=mean, std=std)


def _chosen_scores(base: SharedBase, role: str, pairs: Sequence[Pair], budget: TokenBudget) -> Tensor:
    """Scores [N] of the chosen answers of the first 512 pairs."""
    return score(base, role, [pair.chosen_ids for pair in pairs[:512]], budget)


@torch.no_grad()
def score(base: SharedBase, role: str, rows: Sequence[Tensor], budget: TokenBudget) -> Tensor:
    """[N] rewards of rows of tokens; `budget` is of tokens in one forward."""
    out, lengths = torch.zeros(len(rows)), [len(row) for row in rows]

    def attempt(tokens: int) -> None:
        with base.role(role, train=False):
            for batch in length_batches(lengths, max_tokens=tokens):
                out[batch] = _rewards(base, role, [rows[i] for i in batch]).float().cpu()

    budget.within(attempt, max(lengths), len(lengths) * max(lengths))
    return out


def _rewards(base: SharedBase, role: str, rows: Sequence[Tensor]) -> Tensor:
    lengths = torch.tensor([len(row) for row in rows])
    ids = pad_right(list(rows), base.tokenizer.pad_token_id).to(base.device)
    return base.forwards.rewards(base.forwards.hidden(ids), lengths, role)


class Trainer:
    """Trains one reward role on pairs."""

    def __init__(
        self,
        stage: RewardModelStage,
        ctx: Context,
        member: int,
        pairs: Sequence[Pair],
        held_out: Sequence[Pair],
        steps: int,
        scoring: TokenBudget,
    ) -> None:
        self.stage, self.ctx, self.member, self.role = stage, ctx, member, f"reward-{member}"
        self.pairs, self.held_out, self.steps = pairs, held_out, steps
        self.tokens = 0
        self.guard = NonFiniteGuard(stage.name, stage.max_bad_steps)
        self.scoring, self.updating = scoring, TokenBudget(stage.name, ctx.recipe.model.tokens_per_forward)

    def train(self, state: Mapping[str, Any] | None = None) -> None:
        """All updates, or those that are left after a state; earlier members count in the log's steps."""
        stage, base, offset = self.stage, self.ctx.base, self.member * self.steps
        ctx_seed = self.ctx.generator(stage.name, "data", self.role)
        order = _order(len(self.pairs), self.steps * stage.batch_size, ctx_seed)
        with base.training([self.role]) as parameters, base.role(self.role, train=True):
            optimizer = make_optimizer(stage, [{"params": parameters, "lr": stage.learning_rate}])
            shape = "constant_with_warmup" if stage.lr_scheduler == "constant" else stage.lr_scheduler
            warmup = warmup_steps(stage.warmup, self.steps)
            scheduler = get_scheduler(
                shape, optimizer, num_warmup_steps=warmup, num_training_steps=self.steps
            )
            done = 0
            if state is not None:
                done, self.tokens, self.guard.in_a_row = state["step"], state["tokens"], state["skipped"]
                self.updating.amount = state["budget"]
                optimizer.load_state_dict(state["optimizer"])
                scheduler.load_state_dict(state["scheduler"])
                self.ctx.saver.go_on(state)
            for step in range(done + 1, self.steps + 1):
                rows = order[(step - 1) * stage.batch_size : step * stage.batch_size]
                rate = scheduler.get_last_lr()[0]
                figures = self._step(step, [self.pairs[i] for i in rows], optimizer, parameters)
                advance(scheduler)
                figures |= {"learning_rate": rate, "epoch": step * stage.batch_size / len(self.pairs)}
                if stage.ensemble > 1:
                    figures["head"] = float(self.member)
                if self._due(step):
                    held = evaluate(base, self.role, self.held_out, self.scoring)
                    figures |= {f"eval/{self.role}/{key}": value for key, value in held.items()}
                self.ctx.log(stage.name, offset + step, figures)
                self._remember(step, optimizer, scheduler, figures)

    def _remember(self, step: int, optimizer: Any, scheduler: Any, figures: Mapping[str, float]) -> None:
        """Not the last update of a member, which its normalisation is to follow."""
        if step == self.steps:
            return

        def state() -> dict[str, Any]:
            return {
                "member": self.member,
                "step": step,
                "tokens": self.tokens,
                "skipped": self.guard.in_a_row,
                "budget": self.updating.amount,
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
            }

        so_far = [f"reward-{number}" for number in range(self.member + 1)]
        total = self.stage.ensemble * self.steps
        self.ctx.saver.reached(self.stage, self.member * self.steps + step, total, so_far, state, figures)

    def _due(self, step: int) -> bool:
        return bool(self.held_out) and (step == self.steps or self.stage.eval.due(step))

    def _step(
        self, step: int, pairs: list[Pair], optimizer: torch.optim.Optimizer, parameters: list[Any]
    ) -> dict[str, float]:
        """One update; micro-batches are pairs within the token budget, the loss is the mean over all pairs."""
        base = self.ctx.base
        lengths = [2 * max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]

        def attempt(tokens: int) -> tuple[dict[str, float], list[str]]:
            optimizer.zero_grad(set_to_none=True)
            totals, bad = {"loss": 0.0, "accuracy": 0.0, "margin": 0.0}, []
            for micro in length_batches(lengths, max_tokens=tokens):
                batch = [pairs[i] for i in micro]
                rows = [pair.chosen_ids for pair in batch] + [pair.rejected_ids for pair in batch]
                chosen, rejected = _rewards(base, self.role, rows).chunk(2)
                losses = self._loss(chosen, rejected, batch)
                finite = losses.isfinite().tolist()
                bad += [f"row {pair.index}" for pair, fine in zip(batch, finite, strict=True) if not fine]
                loss = losses.sum() / len(pairs)
                loss.backward()
                margin = (chosen - rejected).detach()
                totals["loss"] += float(loss.detach())
                totals["accuracy"] += float((margin > 0).sum()) / len(pairs)
                totals["margin"] += float(margin.sum()) / len(pairs)
            return totals, bad

        totals, bad = self.updating.within(attempt, max(lengths), len(lengths) * max(lengths))
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.stage.max_grad_norm or math.inf))
        if self.guard.allows(
            step, totals["loss"], norm, lambda: (bad, [f"row {pair.index}" for pair in pairs])
        ):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.tokens += sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
        skipped = {"updates/skipped": float(not self.guard.taken)}
        return {**totals, "grad_norm": norm, **skipped, "num_tokens": float(self.tokens)}

    def _loss(self, chosen: Tensor, rejected: Tensor, batch: list[Pair]) -> Tensor:
        label = torch.tensor([pair.label for pair in batch], device=chosen.device)
        margin = torch.tensor([pair.margin for pair in batch], device=chosen.device)
        center = self.stage.center_rewards_coefficient or None
        return maths.bradley_terry(chosen, rejected, label=label, margin=margin, center=center)


def _order(count: int, wanted: int, generator: torch.Generator) -> list[int]:
    """Row numbers for all updates: a fresh permutation for each pass."""
    order: list[int] = []
    while len(order) < wanted:
        order += torch.randperm(count, generator=generator).tolist()
    return order[:wanted]


def describe(chosen: Tensor, rejected: Tensor, pairs: Sequence[Pair]) -> dict[str, float]:
    """Accuracy, margin, loss and calibration of rewards [N] of pairs."""
    difference = chosen - rejected
    label = torch.tensor([pair.label for pair in pairs])
    better = torch.where(label >= 0.5, difference, -difference)
    return {
        "accuracy": float((better > 0).float().mean()),
        "margin": float(difference.mean()),
        "loss": float(maths.bradley_terry(chosen, rejected, label=label).mean()),
        # Which answer is listed first is a convention, so confidence is in the answer that scores higher.
        "ece": maths.expected_calibration_error(
            torch.sigmoid(difference.abs()), torch.where(difference > 0, label, 1.0 - label)
        ),
    }


def evaluate(base: SharedBase, role: str, pairs: Sequence[Pair], budget: TokenBudget) -> dict[str, float]:
    """Accuracy, margin, loss and calibration of one head."""
    rewards = score(base, role, [p.chosen_ids for p in pairs] + [p.rejected_ids for p in pairs], budget)
    chosen, rejected = rewards.chunk(2)
    return describe(chosen, rejected, pairs)


def _judged(
    base: SharedBase, roles: Sequence[str], pairs: Sequence[Pair], budget: TokenBudget
) -> tuple[Tensor, Tensor]:
    """[N] and [N] rewards of chosen and rejected rows, the mean over the heads of an ensemble."""
    rows = [p.chosen_ids for p in pairs] + [p.rejected_ids for p in pairs]
    each = torch.stack([score(base, role, rows, budget) for role in roles])
    chosen, rejected = each.mean(0).chunk(2)
    return chosen, rejected


def _samples(
    stage: str, step: int, pairs: Sequence[Pair], margins: Tensor, base: SharedBase
) -> list[dict[str, Any]]:
    """The held-out pairs, and what the reward model makes of each."""
    decode = lambda ids: base.tokenizer.decode(ids, skip_special_tokens=True)  # noqa: E731
    return [
        {
            "stage": stage,
            "step": step,
            "split": "pairs",
            "row": pair.index,
            "prompt": decode(pair.chosen_ids[: pair.prompt_length]),
            "chosen": decode(pair.chosen_ids[pair.prompt_length :]),
            "rejected": decode(pair.rejected_ids[pair.prompt_length :]),
            "margin": margin,
            "label": pair.label,
        }
        for pair, margin in zip(pairs, margins.tolist(), strict=True)
    ]
