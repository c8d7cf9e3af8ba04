"""The update: minibatches over a rollout, exact under any split into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ... import maths
from ...data import length_batches, pad_right
from ...engine import SharedBase
from ...hookspecs import Algorithm
from ...session.non_finite import Finite
from ...session.ranks import Ranks
from ...session.token_budget import Budget
from ...types import Minibatch, Outputs, Scored, Totals
from .forwards import shared_prompts
from .metrics import Averages


@dataclass
class Batch:
    """A scored rollout that is ready to be trained on.

    Attributes:
        scored: the rollout and all quantities, [N, T].
        columns: what the algorithm prepared, name to [N] or [N, T].
        keep: [N] bool, rows to train on.
        unit: [N] rows with the same number stay together.
        idle: [N] bool, rows without gradient; no forward is spent on them.
        sampler_logps: [N, T] of the sampler, or None.
        value_hidden: N tensors [T_i, H] of the frozen reward trunk, or None; only of a process's own rows.
        owner: [N] the process that computes each row's gradient; None: this one.
        silent: [N] bool, rows that are not kept and count as rows of loss 0; None: there are none.
        seen: [N] bool, rows whose `scored.logps` and `scored.entropy` are filled.
    """

    scored: Scored
    columns: dict[str, Tensor]
    keep: Tensor
    unit: Tensor
    idle: Tensor
    sampler_logps: Tensor | None
    value_hidden: list[Tensor] | None
    owner: Tensor | None = None
    silent: Tensor | None = None
    seen: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Where the policy was not run before, the one update on these rows says what it was."""
        self.seen = torch.full((len(self.scored),), self.scored.logps is not None)
        if self.scored.logps is None:
            self.scored.logps = torch.zeros(self.scored.mask.shape)
            self.scored.entropy = torch.zeros(self.scored.mask.shape)


class Updater:
    """Takes optimizer steps on batches.

    Args:
        module: the policy and value (`UpdateModule`).
        base: that they stand on.
        algorithm: gives the loss.
        accelerator: backward and clipping.
        ranks: the other processes.
        optimizer: over the module's trainable parameters.
        parameters: those parameters.
        max_grad_norm: clipping; 0 is off.
        budget: of tokens in one forward.
        pad_id: what padding holds; any id, for masks come from lengths.
        importance_cap: of the weight between trainer and sampler; None: there is none.
        finite: says whether an update may be taken.
    """

    def __init__(
        self,
        module: nn.Module,
        base: SharedBase,
        algorithm: Algorithm,
        accelerator: Any,
        ranks: Ranks,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        *,
        max_grad_norm: float,
        budget: Budget,
        pad_id: int,
        finite: Finite,
        importance_cap: float | None = None,
    ) -> None:
        self.finite = finite
        self._step_number = 0
        self._bad: list[int] = []
        self.importance_cap = importance_cap
        self.module, self.base, self.algorithm, self.accelerator = module, base, algorithm, accelerator
        self.ranks = ranks
        self.optimizer, self.parameters = optimizer, parameters
        self.max_grad_norm, self.budget, self.pad_id = max_grad_norm, budget, pad_id

    def __call__(self, batch: Batch, generator: torch.Generator, step: int) -> dict[str, float]:
        """All epochs over one batch; returns the figures of the updates. `step` is for messages."""
        self._step_number = step
        averages = Averages()
        extremes = [math.inf, -math.inf]
        for _ in range(self.algorithm.epochs):
            counted = batch.keep if batch.silent is None else batch.keep | batch.silent
            for rows in minibatches(batch.unit, counted, self.algorithm.minibatches, generator):
                self._step(batch, rows, averages, extremes)
        averages.gather(self.ranks)
        each = self.ranks.gather(extremes)
        extremes = [min(low for low, _ in each), max(high for _, high in each)]
        ratios = {"ratio/min": extremes[0], "ratio/max": extremes[1]} if extremes[0] <= extremes[1] else {}
        return {**averages.means(), **ratios}

    def _step(self, batch: Batch, rows: list[int], averages: Averages, extremes: list[float]) -> None:
        """One optimizer step on one minibatch, in micro-batches."""
        kept = [row for row in rows if bool(batch.keep[row])]
        totals = Totals(tokens=int(batch.scored.mask[kept].sum()), rows=len(rows))
        owner = batch.owner
        busy = [row for row in kept if not bool(batch.idle[row])]
        mine = busy if owner is None else [row for row in busy if int(owner[row]) == self.ranks.rank]
        lengths = batch.scored.rollout.lengths[mine].tolist()
        units, groups = batch.unit[mine].tolist(), batch.scored.rollout.group[mine].tolist()

        def attempt(tokens: int) -> tuple[float, Averages, list[float]]:
            self._bad = []
            self.optimizer.zero_grad(set_to_none=True)
            loss, figures, ratios = 0.0, Averages(), [math.inf, -math.inf]
            for micro in length_batches(lengths, max_tokens=tokens, unit=units, group=groups):
                loss += self.micro_step(batch, [mine[i] for i in micro], totals, figures, ratios)
            return loss, figures, ratios

        longest = max(lengths, default=1)
        loss, figures, ratios = self.budget.within(attempt, longest, max(1, len(lengths)) * longest)
        averages.take(figures)
        extremes[0], extremes[1] = min(extremes[0], ratios[0]), max(extremes[1], ratios[1])
        self.ranks.sum_gradients(self.parameters)
        loss = sum(self.ranks.gather(loss))
        norm = float(
            self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm or math.inf)
            if self.parameters
            else 0.0
        )
        named = lambda: (self._named(batch, self._bad), self._named(batch, busy))  # noqa: E731
        taken = self.finite(self._step_number, loss, norm, named)
        if taken:
            self.optimizer.step()
            averages.add_value("loss", loss)
            averages.add_value("grad_norm", norm)
        self.optimizer.zero_grad(set_to_none=True)
        averages.add_value("updates/skipped", float(not taken))

    def _named(self, batch: Batch, rows: Sequence[int]) -> list[str]:
        """Rows in words: by their prompts."""
        prompts = batch.scored.rollout.columns.get("prompt")
        return [f"row {row}" if prompts is None else f"row {row} ({_short(prompts[row])})" for row in rows]

    def micro_step(
        self, batch: Batch, rows: list[int], totals: Totals, averages: Averages, extremes: list[float]
    ) -> float:
        """Forward and backward of some rows; returns their part of the minibatch's loss."""
        ids, minibatch, hidden = self._pad(batch, rows)
        shared = shared_prompts(self.base, ids, minibatch.mask, batch.scored.rollout.lengths[rows])
        logps, values, entropy = self.module(ids, minibatch.mask, hidden, shared)
        if minibatch.logps is None:
            self._note(batch, rows, logps, entropy)
        self._weigh(batch, rows, minibatch, logps.detach())
        terms, figures = self.algorithm.loss(Outputs(logps, values, entropy), minibatch)
        real = terms if terms.dim() == 1 else torch.where(minibatch.mask, terms, 0.0).sum(-1)
        self._bad += [row for row, finite in zip(rows, real.isfinite().tolist(), strict=False) if not finite]
        if terms.dim() == 1:
            loss = terms.sum() / totals.rows
        else:
            loss = maths.weighted_sum(terms, self.algorithm.weights(minibatch.mask, totals))
        self.accelerator.backward(loss)
        for name, figure in figures.items():
            averages.add(name, figure, minibatch.mask)
        old = logps.detach() if minibatch.logps is None else minibatch.logps
        log_ratio = torch.where(minibatch.mask, logps.detach() - old, 0.0)
        ratio = log_ratio.exp()
        averages.add("approx_kl", 0.5 * log_ratio.square(), minibatch.mask)
        averages.add("ratio/mean", ratio, minibatch.mask)
        real = ratio[minibatch.mask]
        extremes[0], extremes[1] = (min(extremes[0], float(real.min())), max(extremes[1], float(real.max())))
        return float(loss.detach())

    def _note(self, batch: Batch, rows: list[int], logps: Tensor, entropy: Tensor | None) -> None:
        """What the policy says before its only update on these rows is what it said at the rollout."""
        scored, width = batch.scored, logps.shape[1]
        assert scored.logps is not None and scored.entropy is not None and entropy is not None
        scored.logps[rows, :width] = logps.detach().float().cpu()
        scored.entropy[rows, :width] = entropy.detach().float().cpu()
        batch.seen[rows] = True

    def _weigh(self, batch: Batch, rows: list[int], minibatch: Minibatch, logps: Tensor) -> None:
        """Truncated weights between trainer and sampler, as both were at the rollout."""
        if self.importance_cap is None or batch.sampler_logps is None:
            return
        old = logps if minibatch.logps is None else minibatch.logps
        theirs = batch.sampler_logps[rows, : old.shape[1]].to(old.device)
        weights = maths.truncated_importance(old, theirs, self.importance_cap)
        minibatch.importance = torch.where(minibatch.mask, weights, 0.0)

    def _pad(self, batch: Batch, rows: list[int]) -> tuple[Tensor, Minibatch, Tensor | None]:
        """Rows on the device, cut to the longest of them."""
        scored, device = batch.scored, self.accelerator.device
        ids = pad_right([scored.rollout.input_ids[i] for i in rows], self.pad_id).to(device)
        width = ids.shape[1]

        def cut(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            return (values[rows] if values.dim() == 1 else values[rows, :width]).to(device)

        mask = cut(scored.mask)
        assert mask is not None
        minibatch = Minibatch(
            mask=mask,
            columns={name: column for name, c in batch.columns.items() if (column := cut(c)) is not None},
            logps=cut(scored.logps) if bool(batch.seen[rows].all()) else None,
            ref_logps=cut(scored.ref_logps),
            old_values=cut(scored.values),
        )
        hidden = None
        if batch.value_hidden is not None:
            hidden = pad_sequence([batch.value_hidden[i] for i in rows], batch_first=True).to(device)
        return ids, minibatch, hidden


def _short(prompt: Any) -> str:
    """The beginning of a prompt, in quotes."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def minibatches(unit: Tensor, keep: Tensor, count: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Rows that count in a fresh permutation of their units, in `count` even parts; empty parts are left out."""
    units = torch.unique(unit[keep])
    order = units[torch.randperm(len(units), generator=generator)]
    for part in order.tensor_split(count):
        rows = [i for u in part.tolist() for i in ((unit == u) & keep).nonzero().flatten().tolist()]
        if rows:
            yield rows
