"""A trainer of TRL's that keeps to itself: it sends and writes nothing, and knows the rows that it has read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..data.rows import ROW
from .compat import PrivateOverrides, check_overrides, prepared_inputs, unchanged_metrics

READ = "rows_read"
"""Where a batch keeps the rows that it was made of."""


class ReadRows:
    """The rows that a batch was made of, as the trainer's dataset has them; nothing that a model is given."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = rows

    def named(self) -> list[str]:
        """Them in words; packed rows have no number."""
        return [f"row {row[ROW]}" for row in self.rows if ROW in row]


class QuietTrainer(PrivateOverrides):
    """What takes the place of a trainer's telemetry and of its checkpoints, which would be pickled files.

    It also knows which rows an update was made of, and which of them have a loss that is not finite.

    Attributes:
        take_snapshot: remembers where the trainer is; called after each update.
        restore_optimizer: gives optimizer and schedule their state.
        restore_rest: the same for the policy and for random numbers, once the trainer stands where it was.
    """

    model: Any
    data_collator: Any
    args: Any
    accelerator: Any
    kept_columns = (ROW,)
    _losses: list[torch.Tensor]
    _bad: list[str]
    _seen: list[str]

    def prepared(self, dataset: Any) -> bool:
        """Pairs of token ids need nothing more; SFT packs rows if asked, KTO adds mismatched answers."""
        return "chosen_ids" in dataset.column_names

    def know_rows(self) -> None:
        """Let every batch know its rows from now on."""
        self._losses, self._bad, self._seen = [], [], []
        self._collate = self.data_collator

        def collate(rows: list[dict[str, Any]]) -> Any:
            batch = self._collate(rows)
            batch[READ] = ReadRows(rows)
            return batch

        self.data_collator = collate

    def update_read(self) -> tuple[float, list[str], list[str]]:
        """Loss of the forwards since the last call, the rows whose loss is not finite, and all rows."""
        loss, bad, seen = sum(self._losses, torch.zeros(())), self._bad, self._seen
        self._losses, self._bad, self._seen = [], [], []
        if self.accelerator.num_processes > 1:  # all must come to the same verdict
            loss = self.accelerator.gather(loss.to(self.accelerator.device)).mean()
        return float(loss), bad, seen

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The trainer's own loss; in training it is noted, with the rows it is of."""
        read = inputs.pop(READ, None)
        loss = super().compute_loss  # type: ignore[misc]
        out = loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        if self.model.training and read is not None:
            value = (out[0] if return_outputs else out).detach()
            # A loss that knows the tokens of the whole update is a part of it already.
            part = 1.0 if num_items_in_batch is not None else self.args.gradient_accumulation_steps
            self._losses.append(value.float().cpu() / part)
            self._seen += read.named()
            if not bool(value.isfinite()):
                self._bad += self._not_finite(model, read, loss)
        return out

    @torch.no_grad()
    def _not_finite(self, model: Any, read: ReadRows, loss: Callable[..., Any]) -> list[str]:
        """The rows of a batch whose loss alone is not finite; the trainer's metrics stay as they were."""
        if self.accelerator.num_processes > 1:  # the others do not compute a second time
            return read.named()
        bad = []
        with unchanged_metrics(self):
            for row in read.rows:
                alone = prepared_inputs(self, self._collate([row]))
                if not bool(loss(model, alone).isfinite()):
                    bad += ReadRows([row]).named()
        return bad


def quiet_trainer(trainer: type) -> Any:
    """A trainer class that sends and writes nothing by itself.

    Raises:
        PluginError: the installed release has renamed a private method that must be overridden.
    """
    check_overrides(trainer)
    return type(trainer.__name__, (QuietTrainer, trainer), {"__doc__": trainer.__doc__})
