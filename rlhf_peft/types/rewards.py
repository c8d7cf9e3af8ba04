"""What a reward sees, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .rollout import Finish, Rollout


@dataclass(slots=True)
class RewardBatch:
    """What a reward sees.

    Attributes:
        prompts: N prompts, text or a list of messages, as the dataset has them.
        completions: N completions, text, or `[{"role": "assistant", "content": ...}]` where the prompt is messages.
        completion_ids: N lists of token ids.
        finish: N words: how the row ended.
        columns: the other columns of the dataset, name to N values.
        rollout: the rollout itself.
        heads: output of the heads that the reward's `roles` ask for: role name to [N] float32.
        logps: log-probabilities under "base" (the raw model) and "reference", where the reward's `roles` ask for
            them: role name to [N, T] float32, 0 where not an action.
        step: the update that the batch is for, counted from 1; of an evaluation, the updates before it.
        generator: the only source of random numbers that a reward may use.
        updates: updates before the batch; None: one less than `step`. TRL calls it `trainer_state.global_step`.
        dataset_rows: N numbers of the dataset's rows, counted from 0, for messages; None: not known.
    """

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    finish: list[Finish]
    columns: dict[str, list[Any]]
    rollout: Rollout
    heads: Mapping[str, Tensor]
    step: int
    generator: torch.Generator
    logps: Mapping[str, Tensor] = field(default_factory=dict)
    updates: int | None = None
    dataset_rows: list[int] | None = None

    def __len__(self) -> int:
        return len(self.completion_ids)

    @property
    def texts(self) -> list[str]:
        """N completions as text."""
        return [c if isinstance(c, str) else "".join(str(m["content"]) for m in c) for c in self.completions]

    @property
    def updates_done(self) -> int:
        """Updates before the batch, as `trainer_state.global_step` of TRL: 0 before the first."""
        return max(0, self.step - 1) if self.updates is None else self.updates


@dataclass(slots=True)
class Scores:
    """What a reward returns.

    Attributes:
        row: [N] float32; NaN abstains.
        token: [N, T] float32 or None; added to the per-token reward.
        metrics: numbers to log, under `rewards/<name>/`.
        extra: name to N values, shown beside the samples.
    """

    row: Tensor
    token: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
