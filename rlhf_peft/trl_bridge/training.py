"""What the stages share that leave their training loop to TRL.

The trainer is given the model on loan and rows it can train on; it prints nothing, sends nothing and writes
nothing. Its metrics go to the run through a callback. accelerate's global state is put back afterwards: a
later stage has an Accelerator of its own.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from ..data.rows import quiet
from ..engine import POLICY, SharedBase
from ..errors import DataError, RlhfPeftError, UsageError
from ..recipe.schema import TrlStage
from ..session.context import Context
from ..session.fixed_prompts import FixedPrompts
from ..session.optimizers import warmup_steps
from ..session.token_budget import free, reason, too_little
from .compat import (
    CHECKPOINTING,
    TRAINER_STATE_NAME,
    forget_overrides,
    own_accelerate,
    set_tokens_read,
    tokens_read,
    use_device,
)
from .metrics_callback import MetricsCallback
from .rows import eval_batch, micro_batch, processes, rows_a_process

log = logging.getLogger("rlhf_peft")

OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}
FUSED = "adamw_torch_fused"
"""AdamW on a card: one kernel for many parameters."""


def arguments(stage: TrlStage, ctx: Context, *, folder: str, micro: int, evaluated: int) -> dict[str, Any]:
    """What every trainer is told, as keyword arguments of its configuration.

    Args:
        stage: part of the recipe.
        ctx: the run.
        folder: an empty folder that is thrown away.
        micro: rows of one forward.
        evaluated: held-out rows; 0: none.

    Raises:
        UsageError: the optimizer needs a GPU and there is none.
    """
    base = ctx.base
    if stage.optimizer != "adamw" and base.device.type != "cuda":
        raise UsageError(
            f"optimizer: {stage.optimizer} needs a CUDA GPU. Use stages.{stage.name}.optimizer=adamw."
        )
    constant = "constant_with_warmup" if stage.warmup else "constant"
    gpu = base.device.type != "cpu"
    return {
        "output_dir": folder,
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": eval_batch(evaluated, micro) if evaluated else micro,
        "gradient_accumulation_steps": rows_a_process(stage) // micro,
        "num_train_epochs": stage.num_train_epochs,
        "max_steps": stage.max_steps or -1,
        "learning_rate": stage.learning_rate,
        "lr_scheduler_type": constant if stage.lr_scheduler == "constant" else stage.lr_scheduler,
        "warmup_steps": stage.warmup,
        "max_grad_norm": stage.max_grad_norm,
        "optim": FUSED
        if base.device.type == "cuda" and stage.optimizer == "adamw"
        else OPTIMIZERS[stage.optimizer],
        "weight_decay": stage.weight_decay,
        "adam_beta1": stage.adam_beta1,
        "adam_beta2": stage.adam_beta2,
        "adam_epsilon": stage.adam_epsilon,
        "seed": ctx.seed(stage.name, "train"),
        "data_seed": ctx.seed(stage.name, "order"),
        "max_length": base.max_length,
        "bf16": gpu and base.dtype == torch.bfloat16,
        "fp16": gpu and base.dtype == torch.float16,
        "use_cpu": not gpu,
        CHECKPOINTING: False,  # The base has its own, which knows about roles.
        "eval_strategy": "steps" if evaluated and stage.eval.every else "no",
        "eval_steps": stage.eval.every,
        "eval_on_start": evaluated > 0,
        "prediction_loss_only": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
        "ddp_find_unused_parameters": False,
    }


def settle(args: Any, stage: TrlStage, base: SharedBase) -> Any:
    """The arguments, with the base's own device and our warmup.

    A trainer would round a warmup up, and so do nothing in the first update of every short run.
    """
    args.get_warmup_steps = lambda total: warmup_steps(stage.warmup, total)
    use_device(args, base.device)
    return args


def _connect(
    trainer: Any,
    stage: TrlStage,
    ctx: Context,
    callback: MetricsCallback,
    folder: str,
    state: dict[str, Any] | None,
) -> str | None:
    """Let a trainer remember where it is, and take up where it was; returns the folder that it resumes from."""
    micro = trainer.args.per_device_train_batch_size

    def state_dict() -> dict[str, Any]:
        # Its history of metrics grows with every update, and is in metrics.jsonl.
        state = {**dataclasses.asdict(trainer.state), "log_history": []}
        scaler = trainer.accelerator.scaler
        return {
            "trainer": json.loads(json.dumps(state)),
            "tokens": tokens_read(trainer),
            "scheduler": trainer.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "steps": callback.steps[:1] + callback.steps[1:][-1:],
            "eval": callback.eval,
            "skipped": callback.guard.in_a_row,
            "micro": micro,
        }

    def take_snapshot() -> None:
        step = int(trainer.state.global_step)
        if step < int(trainer.state.max_steps):  # The end of the stage is to follow the last update.
            last = {**(callback.steps[-1] if callback.steps else {}), **callback.eval}
            ctx.checkpointer.snapshot(
                stage, step, [POLICY], trainer.optimizer, state_dict(), metrics=last, repeatable=True
            )

    trainer.take_snapshot = take_snapshot
    if state is None:
        return None

    def restore_optimizer() -> None:
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.lr_scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] is not None and trainer.accelerator.scaler is not None:
            trainer.accelerator.scaler.load_state_dict(state["scaler"])

    def restore_rest() -> None:
        # The evaluation that every training begins with was of the weights before.
        callback.eval = dict(state["eval"])
        ctx.checkpointer.restore(state)

    trainer.restore_optimizer, trainer.restore_rest = restore_optimizer, restore_rest
    set_tokens_read(trainer, state["tokens"])
    callback.steps, callback.guard.in_a_row = list(state["steps"]), state["skipped"]
    # It may have been trained with more rows in a forward till then.
    trainer_state = {**state["trainer"], "train_batch_size": micro}
    (Path(folder) / TRAINER_STATE_NAME).write_text(json.dumps(trainer_state), encoding="utf-8")
    return folder


def train(
    stage: TrlStage,
    ctx: Context,
    held_out: Any,
    build: Callable[[Any, str, Any, int], Any],
    micro: int,
    at_least: int = 1,
) -> tuple[dict[str, float], Any]:
    """Train the policy with a trainer of TRL's, and save it.

    Where memory does not suffice, the update is done again with fewer rows in a forward.

    Args:
        stage: part of the recipe.
        ctx: the run.
        held_out: to evaluate on, or None.
        build: makes the trainer from the lent model, a folder that is thrown away, a tokenizer to spoil, and the rows
            of one forward.
        micro: rows of one forward.
        at_least: fewest rows of one forward.

    Returns:
        The metrics of the end, and the held-out rows as the trainer has them.

    Raises:
        RlhfPeftError: out of memory with the fewest rows in a forward.
    """
    began, lines = time.monotonic(), ctx.run.lines()
    prompts = FixedPrompts(stage, ctx)
    state = ctx.checkpointer.stage_state(stage)
    micro = micro if state is None else min(micro, state["micro"])
    while True:
        callback = MetricsCallback(stage, ctx, held_out is not None, prompts)
        try:
            evaluated = _attempt(stage, ctx, callback, build, micro, state)
            break
        except (RuntimeError, MemoryError) as error:
            if processes() > 1:  # the others wait for this one
                raise
            failed = reason(error)
        # Outside of the handler the error, and with it what its frames hold, is gone.
        fewer = micro_batch(rows_a_process(stage), 1, max(at_least, micro // 2), at_least)
        if fewer >= micro:
            raise RlhfPeftError(too_little(stage.name, f"{micro} rows in one forward", failed))
        micro = fewer
        log.warning("%s: out of memory. From here on %d rows go into one forward.", stage.name, micro)
        state = ctx.checkpointer.rewind(stage, lines)
        free()
    if callback.main:
        prompts.answer(callback.step)
        ctx.save_role(stage.name, callback.step, POLICY)
    metrics = {
        **_summary(callback.steps),
        **callback.eval,
        "steps": float(callback.step),
        "seconds": time.monotonic() - began,
    }
    return metrics, evaluated


def _attempt(
    stage: TrlStage,
    ctx: Context,
    callback: MetricsCallback,
    build: Callable[[Any, str, Any, int], Any],
    micro: int,
    state: dict[str, Any] | None,
) -> Any:
    """Train to the end, from the beginning or from a state; returns the held-out rows as the trainer has them."""
    ctx.seed_everything(stage.name, "train")
    with own_accelerate(), tempfile.TemporaryDirectory() as folder, ctx.base.lend(POLICY) as model, quiet():
        trainer = build(model, folder, deepcopy(ctx.base.tokenizer), micro)
        try:
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(callback)
            trainer.know_rows()
            callback.trainer = trainer
            _check_rows(stage, trainer.train_dataset)
            trainer.train(resume_from_checkpoint=_connect(trainer, stage, ctx, callback, folder, state))
            callback.step, callback.main = int(trainer.state.global_step), trainer.is_world_process_zero()
            return trainer.eval_dataset
        finally:
            callback.trainer = None
            _release(trainer)
            forget_overrides(model)


def _check_rows(stage: TrlStage, rows: Any) -> None:
    if len(rows) == 0:
        raise DataError(
            f"{stage.dataset.path or stage.dataset.name}: no row is left to train on after tokenization."
        )


def _summary(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    if not steps:
        return {}
    first, last = steps[0], steps[-1]
    rest = {
        key: value
        for key, value in last.items()
        if key not in ("loss", "epoch", "grad_norm", "learning_rate")
    }
    return {"loss_first": first["loss"], "loss_last": last["loss"], **rest}


def _release(trainer: Any) -> None:
    """Free the optimizer's memory now: trainer and model refer to each other."""
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.callback_handler.optimizer = trainer.callback_handler.lr_scheduler = None
    trainer.accelerator.free_memory()
