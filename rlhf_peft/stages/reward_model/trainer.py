"""The training loop of one reward role."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from ... import maths
from ...data import Pair, length_batches
from ...kit.upload import upload
from ...recipe.schema import RewardModelStage
from ...session.context import Context
from ...session.later_reads import LaterReads
from ...session.loss_scale import LossScale
from ...session.non_finite import NonFiniteGuard
from ...session.optimizers import advance, make_optimizer, warmup_steps
from ...session.token_budget import TokenBudget
from .scoring import evaluate, forward_rewards


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
        self.loss_scale = LossScale(stage.name, ctx.base.dtype)
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
            self.ctx.checkpointer.watch(optimizer)
            done, unlogged = 0, None
            if state is not None:
                unlogged = state["unlogged"]
                done, self.tokens, self.guard.in_a_row = state["step"], state["tokens"], state["skipped"]
                self.updating.amount = state["budget"]
                self.loss_scale.load_state_dict(state)
                optimizer.load_state_dict(state["optimizer"])
                scheduler.load_state_dict(state["scheduler"])
                self.ctx.checkpointer.restore(state)
            for step in range(done + (unlogged is None), self.steps + 1):
                metrics = unlogged
                if metrics is None:
                    rows = order[(step - 1) * stage.batch_size : step * stage.batch_size]
                    rate = scheduler.get_last_lr()[0]
                    metrics = self._step(step, [self.pairs[i] for i in rows], optimizer, parameters)
                    advance(scheduler)
                    metrics |= {"learning_rate": rate, "epoch": step * stage.batch_size / len(self.pairs)}
                unlogged = None
                self._snapshot(step, optimizer, scheduler, metrics, logged=False)
                if stage.ensemble > 1:
                    metrics["head"] = float(self.member)
                if self._due(step):
                    evaluated = evaluate(base, self.role, self.held_out, self.scoring)
                    metrics |= {f"eval/{self.role}/{key}": value for key, value in evaluated.items()}
                self.ctx.log(stage.name, offset + step, metrics)
                if step < self.steps:  # The normalisation of this member is to follow the last one.
                    self._snapshot(step, optimizer, scheduler, metrics, logged=True)

    def _snapshot(
        self, step: int, optimizer: Any, scheduler: Any, metrics: Mapping[str, float], *, logged: bool
    ) -> None:
        """Note that an update is done; if it is not `logged`, a run that goes on from here does so first."""
        self.ctx.checkpointer.snapshot(
            self.stage,
            self.member * self.steps + step,
            [f"reward-{number}" for number in range(self.member + 1)],
            optimizer,
            {
                "member": self.member,
                "step": step,
                "unlogged": None if logged else dict(metrics),
                "tokens": self.tokens,
                "skipped": self.guard.in_a_row,
                "budget": self.updating.amount,
                "scheduler": scheduler.state_dict(),
                **self.loss_scale.state_dict(),
            },
            metrics=metrics if logged else None,
        )

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
            totals, bad, later = {"loss": 0.0, "accuracy": 0.0, "margin": 0.0}, list[str](), LaterReads()

            def note(batch: list[Pair], losses: Tensor, loss: Tensor, margin: Tensor) -> None:
                """Take in a micro-batch; the host waits for its numbers when all micro-batches are done."""

                def take(numbers: list[float]) -> None:
                    *finite, total, right, sum_of_margins = numbers
                    bad.extend(
                        f"row {pair.index}" for pair, fine in zip(batch, finite, strict=True) if not fine
                    )
                    totals["loss"] += total
                    totals["accuracy"] += right / len(pairs)
                    totals["margin"] += sum_of_margins / len(pairs)

                sums = torch.stack([loss, (margin > 0).sum().to(loss.dtype), margin.sum()])
                later.add(torch.cat([losses.isfinite(), sums]), take)

            for micro in length_batches(lengths, max_tokens=tokens):
                batch = [pairs[i] for i in micro]
                rows = [pair.chosen_ids for pair in batch] + [pair.rejected_ids for pair in batch]
                chosen, rejected = forward_rewards(base, self.role, rows).chunk(2)
                losses = self._loss(chosen, rejected, batch)
                loss = losses.sum() / len(pairs)
                self.loss_scale.backward(loss)
                note(batch, losses.detach(), loss.detach(), (chosen - rejected).detach())
            later.read()
            return totals, bad

        totals, bad = self.updating.within(attempt, max(lengths), len(lengths) * max(lengths))
        self.loss_scale.unscale(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.stage.max_grad_norm or math.inf))
        named = lambda: (bad, [f"row {pair.index}" for pair in pairs])  # noqa: E731
        overflows = self.loss_scale.overflows(step, totals["loss"], norm)
        taken = not overflows and self.guard.allows(step, totals["loss"], norm, named)
        if taken:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.tokens += sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
        skipped = {"updates/skipped": float(not taken), **self.loss_scale.metrics()}
        return {**totals, "grad_norm": norm, **skipped, "num_tokens": float(self.tokens)}

    def _loss(self, chosen: Tensor, rejected: Tensor, batch: list[Pair]) -> Tensor:
        label = upload(torch.tensor([pair.label for pair in batch]), chosen.device)
        margin = upload(torch.tensor([pair.margin for pair in batch]), chosen.device)
        center = self.stage.center_rewards_coefficient or None
        return maths.bradley_terry(chosen, rejected, label=label, margin=margin, center=center)


def _order(count: int, total: int, generator: torch.Generator) -> list[int]:
    """Row numbers for all updates: a fresh permutation for each pass."""
    order: list[int] = []
    while len(order) < total:
        order += torch.randperm(count, generator=generator).tolist()
    return order[:total]
