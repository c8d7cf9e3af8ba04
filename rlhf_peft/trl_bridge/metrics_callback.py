"""The metrics of TRL's trainers, handed to the run through a callback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from ..engine import POLICY
from ..recipe.schema import TrlStage
from ..session.context import Context
from ..session.fixed_prompts import FixedPrompts
from ..session.non_finite import NonFiniteGuard

SILENT = ("_runtime", "_per_second", "eval_num_tokens", "total_flos", "train_loss")
"""Endings of metrics that are not written down: times of parts, and sums of what is there already."""


class MetricsCallback(TrainerCallback):
    """Hands a trainer's metrics to the run: one record an update, with the metrics of an evaluation after it."""

    def __init__(self, stage: TrlStage, ctx: Context, evaluate: bool, prompts: FixedPrompts) -> None:
        self.trainer: Any = None
        self.step, self.main = 0, True
        self.stage = stage.name
        self.guard = NonFiniteGuard(stage.name, stage.max_bad_steps)
        self.prompts = prompts
        self.ctx = ctx
        self.evaluate = evaluate
        self.steps: list[dict[str, float]] = []
        self.eval: dict[str, float] = {}
        self._waiting: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The number of updates is known."""
        if state.is_world_process_zero:
            self.ctx.reporter.stage(self.stage, int(state.max_steps))
            self.prompts.answer(0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where the first update begins is remembered too: it may have to be done again."""
        if state.global_step == 0 and not self.ctx.checkpointer.replaying:
            self.trainer.take_snapshot()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the last update there is always an evaluation."""
        if self.evaluate and state.global_step >= state.max_steps:
            control.should_evaluate = True
        if state.is_world_process_zero and state.global_step < state.max_steps:
            self.prompts.at(int(state.global_step))
        control.should_save = True  # after the log and the evaluation; see `QuietTrainer`

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **kwargs: Any) -> None:
        """Metrics of an update, or of an evaluation after it."""
        metrics = {
            k: float(v) for k, v in logs.items() if isinstance(v, int | float) and not k.endswith(SILENT)
        }
        evaluated = any(key.startswith("eval_") for key in metrics)
        if evaluated:
            self.eval = metrics
        elif "loss" not in metrics:
            return
        else:
            metrics["updates/skipped"] = float(not self.guard.taken)
            self.steps.append(metrics)
        self._waiting.update(metrics)
        if evaluated or not control.should_evaluate:
            if state.is_world_process_zero:
                self.ctx.log(self.stage, int(state.global_step), self._waiting)
            self._waiting = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An update without gradients changes nothing: one that is not finite is left without."""
        loss, bad, seen = self.trainer.update_read()
        if self.ctx.base.dtype == torch.float16:
            return  # its loss scaling finds its measure by such updates, and skips them itself
        parameters = [p for p in self.ctx.base.roles.parameters(POLICY) if p.grad is not None]
        if not parameters:
            return
        norm = float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())
        if not self.guard.allows(int(state.global_step) + 1, loss, norm, lambda: (bad, seen)):
            for parameter in parameters:
                parameter.grad = None
