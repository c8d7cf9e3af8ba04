"""The update: minibatches over a batch, exact under any split into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ... import maths
from ...data import length_batches
from ...hookspecs import Algorithm
from ...kit.upload import upload
from ...session.later_reads import LaterReads
from ...session.loss_scale import LossScale
from ...session.non_finite import NonFiniteGuard
from ...session.ranks import Ranks
from ...session.token_budget import TokenBudget
from ...types import Batch, Minibatch, Outputs
from .forwards import RoleForwards
from .metrics import Averages


@dataclass
class Minibatches:
    """How a batch is cut into minibatches.

    Attributes:
        batch: the rows.
        units: [N] rows with the same number stay together.
        no_gradient: [N] bool, rows on which no forward is spent.
        asks_old_logps: whether the update's own forward tells `batch.old_logps` and `batch.entropy`, as this is the
            only update on its rows.
        sampler_logps: [N, T] of the sampler, or None.
    """

    batch: Batch
    units: Tensor
    no_gradient: Tensor
    asks_old_logps: bool = field(init=False)
    sampler_logps: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        """NaN says of a row that the policy was not run on it."""
        self.sampler_logps = self.batch.sampler_logps
        self.asks_old_logps = self.batch.old_logps is None
        if self.asks_old_logps:
            self.batch.old_logps = torch.full(self.batch.mask.shape, math.nan)
            self.batch.entropy = torch.full(self.batch.mask.shape, math.nan)

    def cut(self, count: int, generator: torch.Generator) -> Iterator[list[int]]:
        """Rows that count in a fresh permutation of their units, in `count` even parts; empty parts are left out."""
        counted = (
            self.batch.train if self.batch.zero_loss is None else self.batch.train | self.batch.zero_loss
        )
        units = torch.unique(self.units[counted])
        order = units[torch.randperm(len(units), generator=generator)]
        for part in order.tensor_split(count):
            rows = [
                i for u in part.tolist() for i in ((self.units == u) & counted).nonzero().flatten().tolist()
            ]
            if rows:
                yield rows


@dataclass
class Progress:
    """What is logged of the updates of one step.

    What a micro-step computes is noted on the device, and `read` once for all of a minibatch.

    Attributes:
        averages: means over tokens, rows or updates.
        loss: of a minibatch.
        smallest: ratio of a token.
        largest: ratio of a token.
        not_finite: rows whose part of the loss is not finite.
        later: what is still to be read.
    """

    averages: Averages = field(default_factory=Averages)
    loss: float = 0.0
    smallest: float = math.inf
    largest: float = -math.inf
    not_finite: list[int] = field(default_factory=list)
    later: LaterReads = field(default_factory=LaterReads)

    def note_metric(self, name: str, values: Tensor, mask: Tensor, tokens: int) -> None:
        """Note a metric that is averaged over tokens [n, T] or over rows [n].

        Args:
            name: of the metric.
            values: on the device.
            mask: [n, T] bool, actions.
            tokens: how many there are in the mask.
        """
        count = len(values) if values.dim() == 1 else tokens
        total = values.sum() if values.dim() == 1 else maths.masked_sum(values, mask)
        self.later.add(total, lambda numbers: self.averages.add(name, numbers[0], count))

    def note_rows(self, rows: list[int], finite: Tensor, loss: Tensor) -> None:
        """Note the loss of some rows, and whether each row's part [n] of it is finite."""

        def use(numbers: list[float]) -> None:
            self.loss += numbers[0]
            self.not_finite += [
                row for row, is_finite in zip(rows, numbers[1:], strict=True) if not is_finite
            ]

        self.later.add(torch.cat([loss.detach().double().view(1), finite.double()]), use)

    def note_ratios(self, ratio: Tensor, mask: Tensor) -> None:
        """Note the smallest and the largest ratio [n, T] of a token."""

        def use(numbers: list[float]) -> None:
            self.smallest, self.largest = min(self.smallest, numbers[0]), max(self.largest, numbers[1])

        least, most = ratio.masked_fill(~mask, math.inf).amin(), ratio.masked_fill(~mask, -math.inf).amax()
        self.later.add(torch.stack([least, most]), use)

    def add(self, other: Progress) -> None:
        """Take in those of another part of the updates."""
        self.averages.take(other.averages)
        self.smallest = min(self.smallest, other.smallest)
        self.largest = max(self.largest, other.largest)

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """The metrics over all processes."""
        self.averages.gather(ranks)
        each = ranks.gather((self.smallest, self.largest))
        smallest, largest = min(low for low, _ in each), max(high for _, high in each)
        ratios = {"ratio/min": smallest, "ratio/max": largest} if smallest <= largest else {}
        return {**self.averages.means(), **ratios}


class Updater:
    """Takes optimizer steps on batches.

    Args:
        forwards: give policy and value, with gradients.
        algorithm: gives the loss.
        ranks: the other processes.
        optimizer: over the trained parameters.
        parameters: those parameters.
        guard: says whether an update may be taken.
        budget: of tokens in one forward.
        max_grad_norm: clipping; 0 is off.
        importance_cap: of the weight between trainer and sampler; None: there is none.
    """

    def __init__(
        self,
        forwards: RoleForwards,
        algorithm: Algorithm,
        ranks: Ranks,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        *,
        guard: NonFiniteGuard,
        budget: TokenBudget,
        max_grad_norm: float,
        importance_cap: float | None = None,
    ) -> None:
        self.forwards, self.algorithm, self.ranks = forwards, algorithm, ranks
        self.optimizer, self.parameters = optimizer, list(parameters)
        self.guard, self.budget = guard, budget
        self.max_grad_norm, self.importance_cap = max_grad_norm, importance_cap
        self.loss_scale = LossScale(guard.stage, forwards.base.dtype)

    def run(self, batch: Batch, generator: torch.Generator, step: int) -> dict[str, float]:
        """All epochs over one batch; returns the metrics of the updates.

        Where this is the only update on the rows, it fills `batch.old_logps` and `batch.entropy` of those that it
        runs the policy on.

        Args:
            batch: with the columns that the algorithm has prepared.
            generator: of the permutations.
            step: for messages.
        """
        algorithm, progress = self.algorithm, Progress()
        plan = Minibatches(batch, algorithm.minibatch_units(batch), algorithm.no_gradient(batch))
        for _ in range(algorithm.epochs):
            for rows in plan.cut(algorithm.minibatches, generator):
                self._update(plan, rows, progress, step)
        return {**progress.metrics(self.ranks), **self.loss_scale.metrics()}

    def _update(self, plan: Minibatches, rows: list[int], progress: Progress, step: int) -> None:
        """One optimizer step on one minibatch, in micro-batches."""
        batch = plan.batch
        trained = [row for row in rows if bool(batch.train[row])]
        totals = int(batch.mask[trained].sum()), len(rows)
        busy = [row for row in trained if not bool(plan.no_gradient[row])]
        mine = [row for row in busy if int(batch.owner[row]) == self.ranks.rank]
        lengths = batch.rollout.lengths[mine].tolist()
        units, groups = plan.units[mine].tolist(), batch.rollout.group[mine].tolist()

        def attempt(tokens: int) -> Progress:
            self.optimizer.zero_grad(set_to_none=True)
            part = Progress()
            for micro in length_batches(lengths, max_tokens=tokens, unit=units, group=groups):
                self.micro_step(plan, [mine[i] for i in micro], totals, part)
            part.later.read()
            return part

        longest = max(lengths, default=1)
        part = self.budget.within(attempt, longest, max(1, len(lengths)) * longest)
        progress.add(part)
        self.ranks.sum_gradients(self.parameters)
        self.loss_scale.unscale(self.parameters)
        loss = sum(self.ranks.gather(part.loss))
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm or math.inf))
        named = lambda: (_named(batch, part.not_finite), _named(batch, busy))  # noqa: E731
        overflows = self.loss_scale.overflows(step, loss, norm)
        allowed = not overflows and self.guard.allows(step, loss, norm, named)
        if allowed:
            self.optimizer.step()
            progress.averages.add("loss", loss)
            progress.averages.add("grad_norm", norm)
        self.optimizer.zero_grad(set_to_none=True)
        progress.averages.add("updates/skipped", float(not allowed))

    def micro_step(
        self, plan: Minibatches, rows: list[int], totals: tuple[int, int], progress: Progress
    ) -> None:
        """Forward and backward of some rows.

        Args:
            plan: with the batch.
            rows: of the batch.
            totals: tokens and rows of the whole minibatch.
            progress: notes the loss and the metrics, which are read later.
        """
        ids, actions = self.forwards.padded(plan.batch, rows)
        minibatch, hidden = self._minibatch(plan, rows, actions, totals)
        mask, tokens = minibatch.mask, int(actions.sum())
        entropy = "entropy" in self.algorithm.needs or plan.asks_old_logps
        outputs = self.forwards.outputs(ids, actions, hidden, entropy=entropy)
        now = outputs.logps.detach()
        old = now if minibatch.old_logps is None else minibatch.old_logps
        if plan.asks_old_logps:
            _remember(plan.batch, rows, outputs)
        self._weigh(plan, rows, minibatch, old)
        terms, metrics = self.algorithm.loss(outputs, minibatch)
        each = terms if terms.dim() == 1 else torch.where(mask, terms, 0.0).sum(-1)
        if terms.dim() == 1:
            loss = terms.sum() / minibatch.total_rows
        else:
            loss = maths.weighted_sum(terms, self.algorithm.weights(minibatch))
        self.loss_scale.backward(loss)
        progress.note_rows(rows, each.isfinite(), loss)
        log_ratio = torch.where(mask, now - old, 0.0)
        ratio = log_ratio.exp()
        for name, metric in metrics.items():
            progress.note_metric(name, metric.detach(), mask, tokens)
        progress.note_metric("approx_kl", 0.5 * log_ratio.square(), mask, tokens)
        progress.note_metric("ratio/mean", ratio, mask, tokens)
        progress.note_ratios(ratio, mask)

    def _weigh(self, plan: Minibatches, rows: list[int], minibatch: Minibatch, old: Tensor) -> None:
        """Truncated weights between trainer and sampler, as both were at the rollout."""
        if self.importance_cap is None or plan.sampler_logps is None:
            return
        theirs = upload(plan.sampler_logps[rows, : old.shape[1]], old.device)
        weights = maths.truncated_importance(old, theirs, self.importance_cap)
        minibatch.importance = torch.where(minibatch.mask, weights, 0.0)

    def _minibatch(
        self, plan: Minibatches, rows: list[int], actions: Tensor, totals: tuple[int, int]
    ) -> tuple[Minibatch, Tensor | None]:
        """What the algorithm sees of rows, and their value trunk, on the device, cut to the longest."""
        batch = plan.batch
        device, width = self.forwards.base.device, actions.shape[1]

        def cut(values: Tensor | None) -> Any:
            if values is None:
                return None
            return upload(values[rows] if values.dim() == 1 else values[rows, :width], device)

        minibatch = Minibatch(
            mask=upload(actions, device),
            columns={name: cut(column) for name, column in batch.columns.items()},
            total_tokens=totals[0],
            total_rows=totals[1],
            old_logps=None if plan.asks_old_logps else cut(batch.old_logps),
            ref_logps=cut(batch.ref_logps),
            old_values=cut(batch.values),
        )
        hidden = None
        if batch.value_hidden is not None:
            hidden = upload(pad_sequence([batch.value_hidden[i] for i in rows], batch_first=True), device)
        return minibatch, hidden


def _remember(batch: Batch, rows: list[int], outputs: Outputs) -> None:
    """What the policy gives before its only update on these rows is what it gave at the rollout."""
    assert batch.old_logps is not None and batch.entropy is not None and outputs.entropy is not None
    width = outputs.logps.shape[1]
    for whole, values in ((batch.old_logps, outputs.logps), (batch.entropy, outputs.entropy)):
        whole[rows] = 0.0
        whole[rows, :width] = values.detach().float().cpu()


def _named(batch: Batch, rows: Sequence[int]) -> list[str]:
    """Rows in words: by their prompts."""
    prompts = batch.rollout.columns.get("prompt")
    return [f"row {row}" if prompts is None else f"row {row} ({_short(prompts[row])})" for row in rows]


def _short(prompt: Any) -> str:
    """The beginning of a prompt, in quotes."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
