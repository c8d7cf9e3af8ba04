"""Private names of TRL, transformers' Trainer and accelerate; nothing else in the package uses one.

Each entry says what would break without it. A trainer whose private method was renamed does not fail by itself: it
would silently write its own pickled checkpoints into a folder that is thrown away, and ours would not be taken. So
`check_overrides` looks for every method when a trainer class is made, and `tests/trl_bridge/test_compat.py` names each
entry.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from trl import KTOTrainer

from ..engine.compat import argument_name
from ..errors import PluginError

__all__ = ["TRAINER_STATE_NAME"]

CHECKPOINTING = argument_name(TrainingArguments, "activation_checkpointing", "gradient_checkpointing")
"""transformers 5.23 renamed the argument; the old name goes in 6."""

OVERRIDES = {
    "_save_checkpoint": "the trainer would write its own pickled checkpoints, and the run could not be resumed",
    "_load_from_checkpoint": "a resumed trainer would look for model files that were never written",
    "_load_optimizer_and_scheduler": "a resumed trainer would begin with a new optimizer",
    "_load_scaler": "a resumed trainer would look for a file that was never written",
    "_load_rng_state": "a resumed run would draw other random numbers",
    "_set_signature_columns_if_needed": "the numbers of rows would be dropped, so that no message could name a row",
    "_prepare_dataset": "rows that are token ids already would be tokenised again",
    "_prepare_inputs": "rows could not be tried one by one where a loss is not finite",
}
"""Private methods of a trainer that are overridden or called, and what would happen if one were renamed."""

TELEMETRY = "_send_telemetry"
"""TRL's method that sends usage data; a release without it has nothing to switch off."""


def forget_overrides(model: nn.Module) -> None:
    """Take a model's modules out of bitsandbytes' list of exceptions, which is kept as long as the process lives.

    transformers' Trainer puts embeddings there where the optimizer has 8 bits. Without this the embedding of every base
    that was trained would stay on the card. The list is a private attribute.
    """
    from bitsandbytes.optim import GlobalOptimManager

    manager, own = GlobalOptimManager.get_instance(), set(model.modules())
    listed = getattr(manager, "module_weight_config_triple", [])
    listed[:] = [entry for entry in listed if entry[0] not in own]


def check_overrides(trainer: type) -> None:
    """Make sure that a trainer still has every private method that is overridden here.

    Raises:
        PluginError: it has not; the message names the method and what would break.
    """
    for name, consequence in OVERRIDES.items():
        if not hasattr(trainer, name):
            import transformers
            import trl

            raise PluginError(
                f"trl {trl.__version__} with transformers {transformers.__version__} has no {trainer.__name__}.{name} "
                f"any more (see rlhf_peft/trl_bridge/compat.py): {consequence}. Install the versions of "
                "constraints.txt; `rlhf-peft doctor` compares them."
            )


class PrivateOverrides:
    """The private methods that a quiet trainer overrides, each by a public one of `QuietTrainer`."""

    take_snapshot: Callable[[], None]
    restore_optimizer: Callable[[], None]
    restore_rest: Callable[[], None]
    prepared: Callable[[Any], bool]
    kept_columns: tuple[str, ...] = ()
    _signature_columns: list[str]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.take_snapshot()

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None: ...

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if checkpoint is not None:
            self.restore_optimizer()

    def _load_scaler(self, checkpoint: Any) -> None: ...

    def _load_rng_state(self, checkpoint: Any) -> None:
        if checkpoint is not None:
            self.restore_rest()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        self._signature_columns += [name for name in self.kept_columns if name not in self._signature_columns]

    def _prepare_dataset(self, dataset: Any, *rest: Any, **more: Any) -> Any:
        if self.prepared(dataset):
            return dataset
        return super()._prepare_dataset(dataset, *rest, **more)  # type: ignore[misc]

    def _send_telemetry(self) -> None: ...


def prepared_inputs(trainer: Any, batch: Any) -> Any:
    """A batch on the trainer's device."""
    return trainer._prepare_inputs(batch)


@contextmanager
def unchanged_metrics(trainer: Any) -> Iterator[None]:
    """Forwards inside leave TRL's running metrics (`_metrics`, `_total_train_tokens`) as they were."""
    before = deepcopy(trainer._metrics), trainer._total_train_tokens
    try:
        yield
    finally:
        trainer._metrics, trainer._total_train_tokens = before


def tokens_read(trainer: Any) -> Any:
    """Tokens that the trainer has read so far, which TRL logs as `num_tokens`."""
    return trainer._total_train_tokens


def set_tokens_read(trainer: Any, tokens: Any) -> None:
    """Let the trainer go on counting from there."""
    trainer._total_train_tokens = tokens


def use_device(args: Any, device: torch.device) -> None:
    """Make a trainer's arguments use this device alone.

    A trainer would take the first GPU, or all of them. Overwrites the cached property `_setup_devices` and `_n_gpu`;
    without them a run with `device: cuda:1` would train on another card than its base is on.
    """
    if args.distributed_state.num_processes > 1:
        return
    args._setup_devices = device
    args._n_gpu = 0 if device.type == "cpu" else 1
    args.distributed_state.device = device
    if device.type == "cuda":
        torch.cuda.set_device(device)


_STATES = (PartialState, AcceleratorState, GradientState)


@contextmanager
def own_accelerate() -> Iterator[None]:
    """On exit accelerate's global state (`_shared_state`) and the environment that it reads are as they were."""
    states = [(state._shared_state, dict(state._shared_state)) for state in _STATES]
    environment = {key: value for key, value in os.environ.items() if key.startswith("ACCELERATE_")}
    try:
        yield
    finally:
        for shared, before in states:
            shared.clear()
            shared.update(before)
        for key in [key for key in os.environ if key.startswith("ACCELERATE_") and key not in environment]:
            del os.environ[key]
        os.environ.update(environment)


class KtoWithOwnKl(KTOTrainer):
    """TRL's KTO trainer, whose mismatched answers and their log-probabilities a subclass gives.

    Overrides `_prepare_dataset` and `_compute_kl_logps`: without them the KL term is of the rows of one forward, and so
    depends on how many go into it.
    """

    def pair_with_others(self, dataset: Any, args: Any, train: bool) -> Any:
        """The rows with the column `KL_completion_ids`."""
        raise NotImplementedError(f"{type(self).__name__} pairs no rows")

    def kl_logps(self, model: Any, batch: Any) -> Any:
        """Log-probabilities of the mismatched answers; None: TRL computes those of the batch."""
        raise NotImplementedError(f"{type(self).__name__} gives no log-probabilities")

    def trl_kl_logps(self, model: Any, batch: Any) -> Any:
        """As TRL computes them, of one batch."""
        return super()._compute_kl_logps(model, batch)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str, *more: Any
    ) -> Any:
        return self.pair_with_others(dataset, args, dataset_name == "train")

    def _compute_kl_logps(self, model: Any, batch: Any) -> Any:
        logps = self.kl_logps(model, batch)
        return self.trl_kl_logps(model, batch) if logps is None else logps
