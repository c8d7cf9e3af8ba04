"""Preferences straight into the policy: DPO and KTO through TRL, on the shared base.

The reference is a view of the shared base that enters its role. TRL's own ways assume an adapter named
`default`, or use the raw base without a word, which after SFT is the wrong model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer, KTOConfig

from ..data import length_batches, pad_right
from ..engine import POLICY, REFERENCE, SharedBase
from ..errors import Problem, RecipeError
from ..recipe.schema import PreferenceStage
from ..session.context import Context
from ..session.reference import check_reference
from ..session.token_budget import TokenBudget
from ..trl_bridge.kto import WholeKto
from ..trl_bridge.rows import longest_row, micro_batch, rows_a_process, rows_for
from ..trl_bridge.trainer import quiet_trainer
from ..trl_bridge.training import arguments, settle, train

METRICS: dict[str, str] = {
    "loss": "s is the sigmoid. DPO: mean over pairs of (-(1-e) log s(d) + e log s(-d)) / (1 - 2e), "
    "d = r_chosen - r_rejected, e label_smoothing. KTO: mean of weight * (1 - s(r - beta kl)) for desirable "
    "rows and of weight * (1 - s(beta kl - r)) for undesirable ones",
    "rewards/chosen": "mean of r = beta * (log p_policy - log p_reference) of chosen (desirable) completions",
    "rewards/rejected": "the same of rejected (undesirable) completions",
    "rewards/margins": "rewards/chosen - rewards/rejected",
    "rewards/accuracies": "share of pairs with r_chosen > r_rejected; KTO, at the end only: of all held-out "
    "pairs of a desirable and an undesirable row",
    "logps/chosen": "mean log-probability, in nats a completion, of chosen completions under the policy",
    "logps/rejected": "the same of rejected completions",
    "logits/chosen": "mean of all logits at the tokens of chosen completions",
    "logits/rejected": "the same of rejected completions",
    "kl": "KTO: KL to the reference, in nats a completion, from answers paired with other prompts of the same "
    "update; 0 or more",
    "entropy": "mean entropy of the next token at completion tokens, in nats",
    "mean_token_accuracy": "DPO: share of chosen completion tokens that are the policy's likeliest",
    "grad_norm": "norm of the gradient before clipping",
    "updates/skipped": "1 where the update was skipped because loss or gradient were not finite",
    "learning_rate": "of this update",
    "num_tokens": "tokens read so far",
    "epoch": "passes over the rows so far",
    "eval_<name>": "the same over held-out rows",
}


def run(stage: PreferenceStage, ctx: Context) -> dict[str, float]:
    """Train the policy on preferences; its adapter goes into the run folder.

    Returns:
        Metrics of the end, by TRL's names: `rewards/accuracies`, `rewards/margins`, and after `eval_` the
        same over held-out rows.

    Raises:
        DataError: the dataset cannot be used.
        RecipeError: KTO with one row in a forward.
        GuardError: policy and reference differ before the first update, or the loss is not finite.
    """
    # 1. The policy begins as the stage before left it, or as `init` says; the reference is what it is now.
    if "policy" in stage.init:
        ctx.base.roles.load(POLICY, stage.init["policy"])
    ctx.base.roles.freeze_reference()

    # 2. Rows, and how many of them one forward can take. A DPO pair is two rows.
    rows, held_out = rows_for(stage, ctx, stage.method)
    budget = ctx.recipe.model.tokens_per_forward
    tokens = longest_row(rows) * (2 if stage.method == "dpo" else 1)
    fewest = 2 if stage.method == "kto" else 1
    micro = micro_batch(rows_a_process(stage), tokens, budget, at_least=fewest)
    if stage.method == "kto":
        _check_kto(stage, micro)
        # It takes rows in order.
        seed = ctx.seed(stage.name, "order")
        rows = rows.shuffle(seed=seed)
        held_out = None if held_out is None else held_out.shuffle(seed=seed)
    answers = "chosen_ids" if stage.method == "dpo" else "completion_ids"
    few = rows.select(range(min(8, len(rows))))
    check_reference(ctx.base, [[*row["prompt_ids"], *row[answers]] for row in few])

    # 3. TRL trains.
    def build(model: Any, folder: str, tokenizer: Any, micro: int) -> Any:
        evaluated = 0 if held_out is None else len(held_out)
        whole = rows_a_process(stage)
        trainer, args = _method(stage, arguments(stage, ctx, folder=folder, micro=micro, evaluated=evaluated))
        return quiet_trainer(trainer)(
            model=model,
            ref_model=ctx.base.view(REFERENCE),
            args=settle(args, stage, ctx.base),
            train_dataset=_without_lone_row(stage, rows, whole),
            eval_dataset=None if held_out is None else _without_lone_row(stage, held_out, micro),
            processing_class=tokenizer,
            **({"rows": whole} if stage.method == "kto" else {}),
        )

    metrics, evaluated = train(stage, ctx, held_out, build, micro, fewest)

    # 4. KTO has no pairs, so the accuracy of its rewards is over all pairs of a good and a bad row.
    if stage.method == "kto" and held_out is not None:
        metrics["eval_rewards/accuracies"] = _order_accuracy(ctx, stage.name, evaluated)
    return metrics


def _method(stage: PreferenceStage, common: dict[str, Any]) -> tuple[Any, Any]:
    if stage.method == "dpo":
        # TRL's usual loss ignores label_smoothing; `robust` (Chowdhury et al., 2024) is unbiased under flips.
        loss = (
            {"loss_type": ["robust"], "label_smoothing": stage.label_smoothing}
            if stage.label_smoothing
            else {}
        )
        return DPOTrainer, DPOConfig(**common, beta=stage.beta, **loss)
    # In evaluation, KTO's KL term pairs each prompt with its neighbour's answer, in batches of this size.
    common["per_device_eval_batch_size"] = common["per_device_train_batch_size"]
    weights = {"desirable_weight": stage.desirable_weight, "undesirable_weight": stage.undesirable_weight}
    return WholeKto, KTOConfig(**common, beta=stage.beta, **weights)


def _check_kto(stage: PreferenceStage, micro: int) -> None:
    if micro < 2:
        problem = Problem(
            f"stages.{stage.name}.batch_size",
            f"KTO compares rows of one forward and needs at least 2 on each process, {stage.batch_size} "
            f"gives {micro}. Set a larger batch_size.",
        )
        raise RecipeError("the recipe", [problem])


def _without_lone_row(stage: PreferenceStage, rows: Any, size: int) -> Any:
    """For KTO the rows without a last one that would be alone in its batch of `size`: KTO pairs each with another."""
    alone = stage.method == "kto" and len(rows) > 1 and len(rows) % size == 1
    return rows.select(range(len(rows) - 1)) if alone else rows


def _order_accuracy(ctx: Context, name: str, rows: Any) -> float:
    """Share of pairs of a desirable and an undesirable row that the implicit rewards rank correctly."""
    parts = [(len(row["prompt_ids"]), row["prompt_ids"] + row["completion_ids"]) for row in rows]
    budget = TokenBudget(name, ctx.recipe.model.tokens_per_forward)
    rewards = _logps(ctx.base, POLICY, parts, budget) - _logps(ctx.base, REFERENCE, parts, budget)
    good = torch.tensor(rows["label"], dtype=torch.bool)
    return float((rewards[good][:, None] > rewards[~good][None, :]).float().mean())


@torch.no_grad()
def _logps(
    base: SharedBase, role: str, parts: Sequence[tuple[int, list[int]]], budget: TokenBudget
) -> Tensor:
    """[N]: log-probability of each row's tokens, given those before them, from a position on."""
    out, lengths = torch.zeros(len(parts)), [len(ids) for _, ids in parts]

    def attempt(tokens: int) -> None:
        with base.role(role, train=False):
            for batch in length_batches(lengths, max_tokens=tokens):
                ids = pad_right([torch.tensor(parts[i][1]) for i in batch], base.tokenizer.pad_token_id)
                starts = torch.tensor([[parts[i][0]] for i in batch])
                ends = torch.tensor([[len(parts[i][1])] for i in batch])
                place = torch.arange(ids.shape[1])[None]
                mask = ((place >= starts) & (place < ends)).to(base.device)
                ids = ids.to(base.device)
                out[batch] = base.forwards.logps(base.forwards.hidden(ids), ids, mask)[0].sum(-1).cpu()

    budget.within(attempt, max(lengths), len(lengths) * max(lengths))
    return out
