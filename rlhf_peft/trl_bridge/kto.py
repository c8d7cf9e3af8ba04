"""KTO's KL term over all rows of an update, however many of them go into one forward.

TRL pairs prompts with other rows' answers, and averages the KL of these pairs, within one forward: with fewer rows in a
forward the term, and so the loss, is another. Here both are of the whole update (of each process).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .compat import KtoWithOwnKl
from .trainer import READ


class WholeKto(KtoWithOwnKl):
    """TRL's trainer with the KL of a whole update.

    Args:
        rows: of an update, on one process.
        arguments: what TRL's trainer is given.
    """

    def __init__(self, *, rows: int, **arguments: Any) -> None:
        self._rows = rows
        self._whole: tuple[Tensor, Tensor] | None = None
        super().__init__(**arguments)

    def pair_with_others(self, dataset: Any, args: Any, train: bool) -> Any:
        """Rows of token ids with the answers that they are paired with, among all rows of an update."""
        return neighbours(dataset, self._rows if train else args.per_device_train_batch_size)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The batches of an update, whose KL is computed first."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._whole = self._kl_of(batches) if batches else None
        return batches, items

    @torch.no_grad()
    def _kl_of(self, batches: list[Any]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all mismatched answers under the policy and under the reference."""
        self._whole = None
        self.model.train()
        each: list[tuple[Tensor, Tensor]] = []
        with self.compute_loss_context_manager():
            for batch in batches:
                given = {
                    key: value.to(self.accelerator.device) if isinstance(value, Tensor) else value
                    for key, value in batch.items()
                    if key != READ
                }
                policy, reference = (
                    self.trl_kl_logps(model, given) for model in (self.model_wrapped, self.ref_model)
                )
                each.append((policy, reference))
        return torch.cat([policy for policy, _ in each]), torch.cat([reference for _, reference in each])

    def kl_logps(self, model: Any, batch: Any) -> Any:
        """Those of the whole update, in training."""
        if self._whole is None or not self.model.training:
            return None
        return self._whole[1 if model is self.ref_model else 0]


def neighbours(dataset: Any, rows: int) -> Any:
    """KTO's rows with `KL_completion_ids`: within each update the answers, moved on by one prompt.

    The KL term is of mismatched prompts and answers (Ethayarajh et al., 2024, section 4.1).

    Args:
        dataset: rows with `completion_ids`, in the order of training.
        rows: of one update; in evaluation of one forward.
    """
    answers = dataset.with_format("numpy")["completion_ids"][:]
    moved = []
    for first in range(0, len(answers), rows):
        part = answers[first : first + rows]
        moved += [part[-1], *part[:-1]]
    return dataset.add_column("KL_completion_ids", moved)
