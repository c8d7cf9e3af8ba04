"""Supervised fine-tuning of the policy: TRL's SFTTrainer on the shared base.

Left out on purpose: a loop of our own. The rows are token ids already, and which of them are trained on.
"""

from __future__ import annotations

from typing import Any

from trl import SFTConfig, SFTTrainer

from ..engine import POLICY
from ..recipe.schema import SftStage
from ..session.context import Context
from ..trl_bridge.rows import longest_row, micro_batch, rows_a_process, rows_for
from ..trl_bridge.trainer import quiet_trainer
from ..trl_bridge.training import arguments, settle, train

METRICS: dict[str, str] = {
    "loss": "mean of -log p over the update's trained tokens, in nats",
    "entropy": "mean entropy of the next token at trained tokens, in nats",
    "mean_token_accuracy": "share of trained tokens that are the policy's likeliest",
    "grad_norm": "norm of the gradient before clipping",
    "updates/skipped": "1 where the update was skipped because loss or gradient were not finite",
    "learning_rate": "of this update",
    "num_tokens": "tokens read so far",
    "epoch": "passes over the rows so far",
    "eval_<name>": "the same over held-out rows",
}


def run(stage: SftStage, ctx: Context) -> dict[str, float]:
    """Train the policy on demonstrations; its adapter goes into the run folder.

    Returns:
        Metrics of the end: `loss_first`, `loss_last`, `eval_loss` where rows are held out, `num_tokens`,
        `steps`, `seconds`, and TRL's others.

    Raises:
        DataError: the dataset cannot be used.
    """
    # 1. The policy begins as the stage before left it, or as `init` says.
    if "policy" in stage.init:
        ctx.base.roles.load(POLICY, stage.init["policy"])

    # 2. Rows, and how many of them one forward can take.
    rows, held_out = rows_for(
        stage,
        ctx,
        "sft",
        completion_only=stage.completion_only_loss,
        assistant_only=stage.assistant_only_loss,
    )
    budget = ctx.recipe.model.tokens_per_forward
    longest = min(ctx.base.max_length, budget) if stage.packing else longest_row(rows)
    micro = micro_batch(rows_a_process(stage), longest, budget)

    # 3. TRL trains.
    def build(model: Any, folder: str, tokenizer: Any, micro: int) -> Any:
        evaluated = 0 if held_out is None else len(held_out)
        args = SFTConfig(
            **{
                **arguments(stage, ctx, folder=folder, micro=micro, evaluated=evaluated),
                "max_length": longest if stage.packing else ctx.base.max_length,
                "packing": stage.packing,
                "eval_packing": False,
            }
        )
        return quiet_trainer(SFTTrainer)(
            model=model,
            args=settle(args, stage, ctx.base),
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=tokenizer,
        )

    return train(stage, ctx, held_out, build, micro)[0]
