"""Checks that algorithms keep the rules of the plugin interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import maths
from ..types import Batch, Minibatch, Outputs, Request, Selection
from .doubles import FakeRequestContext, make_batch, make_prompts, make_rollout
from .rules import (
    global_streams_untouched,
    make,
    require,
    require_known,
    require_metrics,
    require_round_trip,
    same,
)

ROLES = frozenset({"policy", "reference", "value"})
QUANTITIES = ("old_logps", "ref_logps", "values", "entropy")
STATS = {"kl": 2.0, "approx_kl": 0.01, "rows": 8.0, "entropy": 1.0, "reward": 0.5, "grad_norm": 1.0}


def check_algorithm(factory: Any, options: Mapping[str, Any] | None = None) -> None:
    """Check that an algorithm keeps the rules, on random rollouts of four prompts.

    It is given only what it names in `roles` and `needs`. Rows without a score are never trained on. Its requests have
    the prompts unchanged and the context's seeds. Values outside the mask change nothing, NaN included. The loss is the
    sum over micro-batches that keep units whole; its gradient reaches the log-probabilities of real tokens alone. Every
    metric is finite and has a formula. The state is plain data and can be loaded again.

    Args:
        factory: what is registered.
        options: as a recipe gives them.

    Raises:
        ConformanceError: a rule is broken.
    """
    _Check(factory, options).all()


class _Check:
    """The check of one algorithm; each method checks one rule."""

    def __init__(self, factory: Any, options: Any) -> None:
        self.factory, self.options = factory, options
        self.who = f"algorithm {getattr(factory, '__name__', '')}".rstrip()

    def all(self) -> None:
        algorithm = make(self.factory, self.options)
        self.attributes(algorithm)
        with global_streams_untouched(self.who):
            batch = self.batch(self.requests(algorithm), algorithm)
            self.select(algorithm, batch)
            self.prepare(algorithm, batch)
            unit = self.units(algorithm, batch)
            rows = _whole_units(unit, batch.train)
            whole = self.loss(algorithm, batch, rows, rows)
            self.no_gradient(algorithm, batch, rows, whole[1])
            self.split(algorithm, batch, rows, unit, whole)
            self.outside(batch, rows, whole)
            self.state(algorithm)

    def attributes(self, algorithm: Any) -> None:
        who, roles = self.who, algorithm.roles
        require(
            isinstance(roles, tuple) and set(roles) <= ROLES,
            f"{who}.roles is a tuple of {sorted(ROLES)}, found {roles!r}.",
        )
        require("policy" in roles, f"{who}.roles lacks the policy.")
        require(isinstance(algorithm.needs, frozenset), f"{who}.needs is a frozenset of words.")
        fits = (algorithm.value is not None) == ("value" in roles) and algorithm.value in (
            None,
            "own",
            "policy",
            "reward",
        )
        require(
            fits,
            f'{who}.value is "own", "policy" or "reward" with the role "value", else None; found {algorithm.value!r}.',
        )
        for name in ("epochs", "minibatches"):
            count = getattr(algorithm, name)
            require(
                isinstance(count, int) and count >= 1,
                f"{who}.{name} is a number of 1 or more, found {count!r}.",
            )
        require(isinstance(algorithm.metrics, Mapping), f"{who}.metrics maps each metric to its formula.")

    def requests(self, algorithm: Any) -> list[Request]:
        prompts, context, who = make_prompts(4), FakeRequestContext(), self.who
        requests: list[Request] = algorithm.requests(prompts, context)
        require(
            bool(requests) and all(isinstance(r, Request) for r in requests),
            f"{who}.requests gives a list of Request.",
        )
        for request in requests:
            known = 0 <= request.group < len(prompts)
            require(
                known,
                f"{who}: a request has group {request.group}; prompts are numbered 0 to {len(prompts) - 1}.",
            )
            intact = torch.equal(request.prompt_ids, prompts[request.group].ids)
            require(intact, f"{who}: a request of group {request.group} does not have that prompt's ids.")
            require(
                "prompt" in request.columns,
                f"{who}: a request has not the prompt's columns; rewards need them.",
            )
        require(
            {r.group for r in requests} == set(range(len(prompts))), f"{who}.requests leaves a prompt out."
        )
        drawn = [r.seed for r in requests if r.params.temperature > 0]
        require(
            len(set(drawn)) == len(drawn),
            f"{who}: two requests have one seed; use context.seed(group, sample).",
        )
        again = make(self.factory, self.options).requests(prompts, context)
        require(
            [r.seed for r in again] == [r.seed for r in requests],
            f"{who}: the same prompts gave other seeds.",
        )
        return requests

    def batch(self, requests: list[Request], algorithm: Any) -> Batch:
        """A batch with scores, in which only the quantities that the algorithm names are set; the others are None."""
        rollout = make_rollout(requests)
        whole = make_batch(rollout, scores=torch.linspace(-1.0, 1.0, len(rollout)).sin() * 2.0, pad=2)
        allowed = {
            "old_logps": "old_logps" in algorithm.needs,
            "ref_logps": "reference" in algorithm.roles,
            "values": "value" in algorithm.roles,
            "entropy": "entropy" in algorithm.needs,
        }
        absent: dict[str, Any] = {name: None for name, used in allowed.items() if not used}
        return replace(whole, **absent)

    def select(self, algorithm: Any, batch: Batch) -> None:
        """Check `select`, and set the rows that are trained on."""
        who = self.who
        selection = algorithm.select(batch, 0)
        require(
            isinstance(selection, Selection),
            f"{who}.select gives a Selection, found {type(selection).__name__}.",
        )
        train, more = selection.train, selection.more_prompts
        require(
            train.shape == (len(batch),) and train.dtype == torch.bool, f"{who}.select: train is [N] bool."
        )
        require(train.any(), f"{who}.select trains on no row of {len(batch)} whose scores all differ.")
        require(
            isinstance(more, int) and more >= 0,
            f"{who}.select: more_prompts is 0 or a number of prompts.",
        )
        silent = replace(batch, scores=batch.scores.clone())
        silent.scores[0] = float("nan")
        other = make(self.factory, self.options)
        other.requests(make_prompts(4), FakeRequestContext())
        left_out = not other.select(silent, 0).train[0]
        require(left_out, f"{who}.select trains on a row whose rewards all abstained (its score is NaN).")
        batch.train, batch.zero_loss = train, selection.zero_loss

    def prepare(self, algorithm: Any, batch: Batch) -> None:
        """Check `prepare`, and set the batch's columns."""
        who = self.who
        columns, metrics = algorithm.prepare(batch)
        require_metrics(metrics, f"{who}.prepare", algorithm.metrics)
        real = batch.mask & batch.train.unsqueeze(-1)
        for name, column in columns.items():
            fits = column.shape in (batch.scores.shape, batch.mask.shape)
            require(
                fits,
                f"{who}.prepare: {name} is {tuple(column.shape)}, expected [N] or [N, T] = {tuple(batch.mask.shape)}.",
            )
            trained_values = column[batch.train] if column.dim() == 1 else column[real]
            require(
                not trained_values.is_floating_point() or trained_values.isfinite().all(),
                f"{who}.prepare: {name} is not finite in a row that is trained on.",
            )
        batch.columns = dict(columns)

    def units(self, algorithm: Any, batch: Batch) -> Tensor:
        unit: Tensor = algorithm.minibatch_units(batch)
        fits = unit.shape == (len(batch),) and unit.dtype == torch.int64
        require(fits, f"{self.who}.minibatch_units gives [N] int64, found {tuple(unit.shape)} {unit.dtype}.")
        return unit

    def loss(self, algorithm: Any, batch: Batch, rows: list[int], of: list[int]) -> tuple[float, Tensor]:
        """The share of `rows` in the loss of the minibatch `of`, and its gradient [n, T]."""
        who = self.who
        outputs, minibatch, logps = _forward(batch, rows, of)
        terms, metrics = algorithm.loss(outputs, minibatch)
        n, width = minibatch.mask.shape
        require(
            terms.shape in ((n, width), (n,)),
            f"{who}.loss: terms are {tuple(terms.shape)}, expected [n, T] = ({n}, {width}) or [n].",
        )
        require_known(metrics, f"{who}.loss", algorithm.metrics)
        for name, values in metrics.items():
            require(
                values.shape in ((n, width), (n,)),
                f"{who}.loss: the metric {name} is {tuple(values.shape)}, expected [n, T] or [n].",
            )
        value = _total(algorithm, terms, minibatch, who)
        value.backward()
        require(logps.grad is not None, f"{who}.loss: no gradient reaches the policy's log-probabilities.")
        assert logps.grad is not None
        return float(value.detach()), logps.grad

    def no_gradient(self, algorithm: Any, batch: Batch, rows: list[int], grad: Tensor) -> None:
        """Check that rows named by `no_gradient` have no gradient."""
        without = algorithm.no_gradient(batch)
        require(
            isinstance(without, Tensor) and without.dtype == torch.bool and without.shape == (len(batch),),
            f"{self.who}.no_gradient gives [N] bool.",
        )
        require(not grad[without[rows]].any(), f"{self.who}.no_gradient names a row that has a gradient.")

    def split(
        self, algorithm: Any, batch: Batch, rows: list[int], unit: Tensor, whole: tuple[float, Tensor]
    ) -> None:
        """Check that a minibatch in two micro-batches has the same loss and gradient."""
        loss, grad = whole
        require(grad.isfinite().all(), f"{self.who}.loss: the gradient is not finite.")
        require(
            not grad[~batch.mask[rows]].any(),
            f"{self.who}.loss: the gradient reaches tokens outside the mask.",
        )
        require(grad.abs().sum() > 0, f"{self.who}.loss: the gradient is 0 for every token.")
        units = unit[rows].unique().tolist()
        parts = [[i for i in rows if int(unit[i]) in half] for half in (units[::2], units[1::2])]
        parts = [part for part in parts if part]
        results = [self.loss(algorithm, batch, part, rows) for part in parts]
        total = sum(value for value, _ in results)
        same_loss = abs(total - loss) <= 1e-5 * max(1.0, abs(loss))
        require(
            same_loss,
            f"{self.who}: the loss is {loss:g} at once and {total:g} in two micro-batches; normalise by "
            "`minibatch.total_tokens` or `minibatch.total_rows`.",
        )
        for part, (_, part_grad) in zip(parts, results, strict=True):
            at = [rows.index(i) for i in part]
            close = torch.allclose(part_grad, grad[at], rtol=1e-4, atol=1e-6)
            require(close, f"{self.who}: the gradient depends on how a minibatch is cut into micro-batches.")

    def outside(self, batch: Batch, rows: list[int], whole: tuple[float, Tensor]) -> None:
        """Check that NaN everywhere outside the mask changes neither the advantages nor the loss."""
        changed: dict[str, Any] = {name: _spoil(getattr(batch, name), batch.mask) for name in QUANTITIES}
        spoilt = replace(batch, **changed)
        algorithm = make(self.factory, self.options)
        requests = algorithm.requests(make_prompts(4), FakeRequestContext())
        require(
            len(requests) == len(batch), f"{self.who}.requests gave another number of rows the second time."
        )
        require(
            same(algorithm.select(spoilt, 0).train, batch.train),
            f"{self.who}.select depends on what stands outside the mask.",
        )
        again, metrics = algorithm.prepare(spoilt)
        require_metrics(metrics, f"{self.who}.prepare with NaN outside the mask", algorithm.metrics)
        real = batch.mask & batch.train.unsqueeze(-1)
        for name, column in batch.columns.items():
            where = batch.train if column.dim() == 1 else real
            equal = torch.allclose(column[where].double(), again[name][where].double(), rtol=1e-5, atol=1e-6)
            require(equal, f"{self.who}.prepare: {name} depends on what stands outside the mask.")
        spoilt.columns = dict(again)
        outputs, minibatch, _ = _forward(spoilt, rows, rows)
        outputs.logps = outputs.logps.masked_fill(~minibatch.mask, float("nan"))
        terms, _ = algorithm.loss(outputs, minibatch)
        value = float(_total(algorithm, terms, minibatch, self.who).detach())
        equal = abs(value - whole[0]) <= 1e-5 * max(1.0, abs(whole[0]))
        require(equal, f"{self.who}.loss is {whole[0]:g}, and {value:g} with NaN outside the mask.")

    def state(self, algorithm: Any) -> None:
        metrics = algorithm.step_end(dict(STATS))
        require_metrics(metrics, f"{self.who}.step_end", algorithm.metrics)
        require_round_trip(algorithm, make(self.factory, self.options), self.who)


def _whole_units(unit: Tensor, train: Tensor) -> list[int]:
    """The rows that are trained on, in the order of their units."""
    order = sorted(range(len(train)), key=lambda i: (int(unit[i]), i))
    return [i for i in order if train[i]]


def _forward(batch: Batch, rows: list[int], of: list[int]) -> tuple[Outputs, Minibatch, Tensor]:
    """Model outputs that differ a little from the old ones, the micro-batch, and the log-probabilities as a leaf.

    Args:
        batch: with its columns.
        rows: of the micro-batch.
        of: rows of the whole minibatch.
    """
    mask = batch.mask[rows]

    def cut(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows]

    generator = torch.Generator().manual_seed(5)
    noise = 0.05 * torch.randn(batch.mask.shape, generator=generator)[rows]
    old = cut(batch.old_logps)
    start = torch.full(mask.shape, -0.5) if old is None else old.nan_to_num(0.0)
    logps = torch.where(mask, start + noise, 0.0).requires_grad_()
    values, entropy = cut(batch.values), cut(batch.entropy)
    minibatch = Minibatch(
        mask=mask,
        columns={name: column[rows] for name, column in batch.columns.items()},
        total_tokens=int(batch.mask[of].sum()),
        total_rows=len(of),
        old_logps=old,
        ref_logps=cut(batch.ref_logps),
        old_values=values,
    )
    outputs = Outputs(logps, None if values is None else values + 2 * noise, entropy)
    return outputs, minibatch, logps


def _total(algorithm: Any, terms: Tensor, minibatch: Minibatch, who: str) -> Tensor:
    """The loss as the RL stage computes it from the terms."""
    if terms.dim() == 1:
        return terms.sum() / minibatch.total_rows
    weights, mask = algorithm.weights(minibatch), minibatch.mask
    require(
        weights.shape == mask.shape,
        f"{who}.weights are {tuple(weights.shape)}, expected {tuple(mask.shape)}.",
    )
    require(not weights[~mask].any(), f"{who}.weights are not 0 outside the mask.")
    require((weights[mask] >= 0).all(), f"{who}.weights are negative.")
    return maths.weighted_sum(terms, weights)


def _spoil(values: Tensor | None, mask: Tensor) -> Tensor | None:
    return None if values is None else values.masked_fill(~mask, float("nan"))
