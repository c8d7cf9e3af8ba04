"""A trainer of TRL's that keeps to itself: it sends and writes nothing, and knows the rows that it has read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch

from ..data.rows import ROW

READ = "rows_read"
"""Where a batch keeps the rows that it was made of."""


class Read:
    """The rows that a batch was made of, as the trainer's dataset has them; nothing that a model is given."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = rows

    def named(self) -> list[str]:
        """Them in words; packed rows have no number."""
        return [f"row {row[ROW]}" for row in self.rows if ROW in row]


class Ours:
    """What takes the place of a trainer's telemetry and of its checkpoints, which would be pickled files.

    It also knows which rows an update was made of, and which of them have a loss that is not finite.

    Attributes:
        keep: remembers where the trainer is; called after each update.
        load: gives optimizer and schedule their state.
        go_on: the same for the policy and for random numbers, once the trainer stands where it was.
    """

    keep: Callable[[], None]
    load: Callable[[], None]
    go_on: Callable[[], None]
    model: Any
    data_collator: Any
    args: Any
    accelerator: Any
    _metrics: Any
    _total_train_tokens: Any
    _prepare_inputs: Callable[[Any], Any]
    _signature_columns: list[str]
    _losses: list[torch.Tensor]
    _bad: list[str]
    _seen: list[str]

    def know_rows(self) -> None:
        """Let every batch know its rows from now on."""
        self._losses, self._bad, self._seen = [], [], []
        self._collate = self.data_collator

        def collate(rows: list[dict[str, Any]]) -> Any:
            batch = self._collate(rows)
            batch[READ] = Read(rows)
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
    def _not_finite(self, model: Any, read: Read, loss: Callable[..., Any]) -> list[str]:
        """The rows of a batch whose loss alone is not finite; its figures stay as they were."""
        if self.accelerator.num_processes > 1:  # the others do not compute a second time
            return read.named()
        before = deepcopy(self._metrics), self._total_train_tokens
        bad = []
        for row in read.rows:
            alone = self._prepare_inputs(self._collate([row]))
            if not bool(loss(model, alone).isfinite()):
                bad += Read([row]).named()
        self._metrics, self._total_train_tokens = before
        return bad

    def _prepare_dataset(self, dataset: Any, *rest: Any, **more: Any) -> Any:
        """Rows come as token ids; pairs need nothing more, SFT packs them if asked, KTO adds mismatched answers."""
        if "chosen_ids" in dataset.column_names:
            return dataset
        return super()._prepare_dataset(dataset, *rest, **more)  # type: ignore[misc]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        if ROW not in self._signature_columns:
            self._signature_columns.append(ROW)

    def _send_telemetry(self) -> None: ...

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.keep()

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None: ...

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if checkpoint is not None:
            self.load()

    def _load_scaler(self, checkpoint: Any) -> None: ...

    def _load_rng_state(self, checkpoint: Any) -> None:
        if checkpoint is not None:
            self.go_on()


def ours(trainer: type) -> Any:
    """A trainer class that sends and writes nothing by itself."""
    return type(trainer.__name__, (Ours, trainer), {"__doc__": trainer.__doc__})
