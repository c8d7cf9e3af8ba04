"""The rows of one RL step: the batch that grows, what is selected of it, and what a loss sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from .rollout import Rollout


@dataclass(slots=True)
class Batch:
    """The rows of one RL step; it grows as the stage computes more of them.

    What was not computed yet, or what the algorithm did not name in `roles` and `needs`, is None or empty. Tensors
    [N, T] are on the CPU and are 0 where no action is, or hold anything there: the mask says what is real.

    Attributes:
        rollout: the rows.
        mask: [N, T] bool, actions.
        owner: [N] int64, the process that has sampled each row and computes its gradient.
        dataset_rows: N numbers of the dataset's rows, counted from 0, for messages.
        old_logps: [N, T] the trainer's own log-probabilities before the update; a row is NaN where they were not
            computed, for the one update that is made gives them for the rows that it trains on.
        entropy: [N, T] in nats, before the update; NaN likewise.
        ref_logps: [N, T] of the reference.
        values: [N, T] before the update.
        heads: reward role to the output [N] of its head.
        role_logps: "base" or "reference" to [N, T] log-probabilities at temperature 1, for rewards that ask for them.
        value_hidden: N tensors [T_i, H] of the frozen reward trunk, where the value head stands on it; on the
            base's device where they take little of it, else on the CPU; empty for rows of other processes.
        scores: [N] float32, weighted sum of the rewards; NaN where no reward has given a score.
        token_scores: [N, T] float32, weighted sum of per-token rewards, or None.
        components: reward name to its scores [N], as the reward gave them.
        extra: name to N values that rewards want to be shown beside the samples.
        metrics: what the rewards logged.
        train: [N] bool, rows that are trained on; all rows until the algorithm has selected.
        zero_loss: [N] bool, rows that are not trained on but count as rows whose loss is 0; None: there are none.
        columns: what the algorithm prepared: name to [N] or [N, T].
    """

    rollout: Rollout
    mask: Tensor
    owner: Tensor
    scores: Tensor
    train: Tensor
    dataset_rows: list[int] | None = None
    old_logps: Tensor | None = None
    entropy: Tensor | None = None
    ref_logps: Tensor | None = None
    values: Tensor | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)
    role_logps: dict[str, Tensor] = field(default_factory=dict)
    value_hidden: list[Tensor] | None = None
    token_scores: Tensor | None = None
    components: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    zero_loss: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, rollout: Rollout, *, owner: int = 0, dataset_rows: Sequence[int] | None = None) -> Batch:
        """A batch of a rollout, of which nothing else is known yet."""
        return cls(
            rollout=rollout,
            mask=torch.nn.utils.rnn.pad_sequence(rollout.action_mask, batch_first=True, padding_value=False),
            owner=torch.full((len(rollout),), owner, dtype=torch.int64),
            scores=torch.full((len(rollout),), float("nan")),
            train=torch.ones(len(rollout), dtype=torch.bool),
            dataset_rows=None if dataset_rows is None else list(dataset_rows),
        )

    def __len__(self) -> int:
        return len(self.rollout)

    @property
    def sampler_logps(self) -> Tensor | None:
        """[N, T] log-probabilities as the sampler computed them, 0 where no action is; None where it gave none."""
        if self.rollout.sampler_logps is None:
            return None
        padded = torch.nn.utils.rnn.pad_sequence(list(self.rollout.sampler_logps), batch_first=True)
        return torch.nn.functional.pad(padded, (0, self.mask.shape[1] - padded.shape[1]))

    def rows(self, index: Sequence[int]) -> Batch:
        """Some of the rows, as wide as all of them, with the metrics of all."""
        chosen = list(index)
        values: dict[str, Any] = {f.name: _rows_of(getattr(self, f.name), chosen) for f in fields(self)}
        return Batch(**{**values, "metrics": self.metrics})

    @classmethod
    def cat(cls, parts: Sequence[Batch], *, groups: Literal["keep", "renumber"] = "renumber") -> Batch:
        """The rows of several batches, in order, padded to the longest.

        What one part lacks is None in the whole. Metrics are averaged over the rows of the parts that have them; a
        share of rows that abstained, or that a reward failed on, counts as 0 where a part does not have it.

        Args:
            parts: at least one.
            groups: as in `Rollout.cat`.
        """
        if len(parts) == 1:
            return parts[0]
        width, counts = max(part.mask.shape[1] for part in parts), [len(part) for part in parts]
        names = [f.name for f in fields(cls) if f.name not in ("rollout", "metrics")]
        return cls(
            rollout=Rollout.cat([part.rollout for part in parts], groups=groups),
            metrics=_mean_metrics([part.metrics for part in parts], counts),
            **{name: _joined([getattr(part, name) for part in parts], width, counts) for name in names},
        )


def _rows_of(value: Any, index: list[int]) -> Any:
    """Some rows of one attribute of a batch."""
    if value is None:
        return None
    if isinstance(value, Rollout):
        return value.rows(index)
    if isinstance(value, dict):
        return {name: _rows_of(one, index) for name, one in value.items()}
    if isinstance(value, list):
        return [value[i] for i in index]
    return value[index] if isinstance(value, Tensor) else value


def _joined(values: Sequence[Any], width: int, counts: Sequence[int]) -> Any:
    """One attribute of several batches: tensors [N, T] are padded, lists and mappings are joined."""
    if any(value is None for value in values):
        return None
    if isinstance(values[0], dict):
        names = dict.fromkeys(name for value in values for name in value)
        each = {
            name: [v.get(name, [None] * n) for v, n in zip(values, counts, strict=True)] for name in names
        }
        return {name: _joined(parts, width, counts) for name, parts in each.items()}
    if isinstance(values[0], list):
        return [item for value in values for item in value]
    if values[0].dim() == 1:
        return torch.cat(list(values))
    return torch.cat([torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in values])


def _mean_metrics(parts: Sequence[Mapping[str, float]], counts: Sequence[int]) -> dict[str, float]:
    """Metrics of several batches, weighted by their rows."""
    out = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        share = name.endswith(("/abstained", "/failed"))
        each = [(n, p.get(name, 0.0)) for n, p in zip(counts, parts, strict=True) if share or name in p]
        out[name] = sum(n * value for n, value in each) / sum(n for n, _ in each)
    return out


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows are trained on, and how many more prompts are wanted first.

    Attributes:
        train: [N] bool, rows that are trained on.
        more_prompts: prompts to sample in a further round; 0: these rows are enough.
        zero_loss: [N] bool, rows that are not trained on but count as rows whose loss is 0, where a loss is a mean
            over rows; None: there are none.
    """

    train: Tensor
    more_prompts: int = 0
    zero_loss: Tensor | None = None


@dataclass(slots=True)
class Minibatch:
    """The rows of one forward of the update: a micro-batch of a minibatch.

    Attributes:
        mask: [n, T] bool, actions.
        columns: what `prepare` returned, the rows of this micro-batch: name to [n] or [n, T].
        total_tokens: actions of all rows of the minibatch that are trained on, over all micro-batches and processes.
        total_rows: rows of the minibatch, those of `Selection.zero_loss` included.
        old_logps: [n, T] before the update; None where this update is the only one, so that they equal the present
            ones.
        ref_logps: [n, T] or None.
        old_values: [n, T] before the update, or None.
        importance: [n, T] truncated weight between trainer and sampler, or None.
    """

    mask: Tensor
    columns: dict[str, Tensor]
    total_tokens: int
    total_rows: int
    old_logps: Tensor | None = None
    ref_logps: Tensor | None = None
    old_values: Tensor | None = None
    importance: Tensor | None = None


@dataclass(slots=True)
class Outputs:
    """What the policy and value give now, with gradients.

    Attributes:
        logps: [n, T].
        values: [n, T] or None.
        entropy: [n, T] or None.
    """

    logps: Tensor
    values: Tensor | None = None
    entropy: Tensor | None = None
