"""Reward modelling: Bradley-Terry on one or several small adapters with scalar heads.

TRL's RewardTrainer would need a model of its own for each head and would save the whole base; the loop here is short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...data import Pair, encode_pairs, require
from ...engine import POLICY, SharedBase
from ...errors import DataError
from ...recipe.schema import RewardModelStage
from ...session.context import Context, lora_spec, total_steps
from ...session.token_budget import TokenBudget
from .scoring import describe, ensemble_scores, score
from .trainer import Trainer


def run(stage: RewardModelStage, ctx: Context) -> dict[str, Any]:
    """Train the reward roles; returns held-out accuracy, margin and calibration."""
    # 1. Pairs, and those held out.
    pairs, held_out = _pairs(stage, ctx)
    steps = total_steps(stage, len(pairs))
    ctx.reporter.stage(stage.name, steps * stage.ensemble)
    # 2. One adapter and head after the other, each with its own initialisation and data order.
    scoring = TokenBudget(stage.name, ctx.recipe.model.tokens_per_forward)
    roles = [f"reward-{i}" for i in range(stage.ensemble)]
    for extra in [role for role in ctx.base.roles.names if role.startswith("reward-") and role not in roles]:
        ctx.base.roles.remove(extra)
    # An ensemble that is taken up in the middle has some of its members already, and one in part.
    state = ctx.checkpointer.stage_state(stage)
    first = 0 if state is None else state["member"]
    for role in roles[:first]:
        _begin(stage, ctx, role)
    for number, role in enumerate(roles[first:], first):
        _begin(stage, ctx, role)
        mean, std = _moments(stage, ctx.base, role, pairs, scoring)
        Trainer(stage, ctx, number, pairs, held_out, steps, scoring).train(state)
        state = None
        _normalise(stage, ctx.base, role, pairs, scoring, mean, std)
        ctx.save_role(stage.name, steps * (number + 1), role)
    # 3. What the ensemble as a whole knows.
    metrics: dict[str, float] = {}
    if held_out:
        chosen, rejected = ensemble_scores(ctx.base, roles, held_out, scoring)
        metrics = {f"eval/{key}": value for key, value in describe(chosen, rejected, held_out).items()}
        ctx.samples(_samples(stage.name, steps * stage.ensemble, held_out, chosen - rejected, ctx.base))
        ctx.log(stage.name, steps * stage.ensemble, metrics)
    return {"metrics": metrics, "pairs": len(pairs), "held_out": len(held_out)}


def _pairs(stage: RewardModelStage, ctx: Context) -> tuple[Sequence[Pair], Sequence[Pair]]:
    rows, eval_rows = ctx.train_and_held_out(stage)
    encoder = ctx.encoder(stage.dataset)

    def encode(dataset: Any, source: str, warn: bool = True) -> Sequence[Pair]:
        require(dataset, "reward_model", source, stage=stage.name, warn=warn)
        return encode_pairs(
            dataset,
            encoder,
            on_bad_row=stage.dataset.on_bad_row,
            on_long_row=stage.dataset.on_long_row,
            source=source,
            stage=stage.name,
        )

    source = stage.dataset.path or str(stage.dataset.name)
    pairs = encode(rows, source)
    if len(pairs) < 2:
        raise DataError(f"{source}: {len(pairs)} usable pairs are too few for a reward model.")
    if eval_rows is None:
        return pairs, []
    held_out, size = encode(eval_rows, source, warn=False), stage.eval.size
    if len(held_out) > size:
        order = torch.randperm(len(held_out), generator=ctx.generator(stage.name, "eval")).tolist()
        held_out = [held_out[i] for i in sorted(order[:size])]
    return pairs, held_out


def _begin(stage: RewardModelStage, ctx: Context, role: str) -> None:
    """Start a role from what `init` names, else from the policy's adapter if it was trained, else from zero."""
    base = ctx.base
    if "reward" in stage.init:
        base.roles.load(role, stage.init["reward"], head=True)
        return
    from_policy = stage.lora is None and not base.roles.is_zero(POLICY)
    lora = None if stage.lora is None else lora_spec(stage.lora)
    base.roles.add(role, like=POLICY if from_policy else None, lora=lora, head=True)


def _moments(
    stage: RewardModelStage, base: SharedBase, role: str, pairs: Sequence[Pair], budget: TokenBudget
) -> tuple[float, float]:
    """Mean and standard deviation that the chosen answers' scores are to have after training: 0 and 1.

    A head that begins from an earlier one keeps that one's scale instead, so that the scores of several rounds can be
    compared: what the earlier head gave to the same answers.
    """
    if stage.normalize == "none" or "reward" not in stage.init:
        return 0.0, 1.0
    scores = _chosen_scores(base, role, pairs, budget)
    return float(scores.mean()), max(float(scores.std()), 1e-6)


def _normalise(
    stage: RewardModelStage,
    base: SharedBase,
    role: str,
    pairs: Sequence[Pair],
    budget: TokenBudget,
    mean: float,
    std: float,
) -> None:
    """Shift the trained head so that chosen answers have this mean, and scale it if asked."""
    if stage.normalize != "none":
        scores = _chosen_scores(base, role, pairs, budget)
        base.roles.head(role).normalise(scores, spread=stage.normalize == "standardize", mean=mean, std=std)


def _chosen_scores(base: SharedBase, role: str, pairs: Sequence[Pair], budget: TokenBudget) -> Tensor:
    """Scores [N] of the chosen answers of the first 512 pairs."""
    return score(base, role, [pair.chosen_ids for pair in pairs[:512]], budget)


def _samples(
    stage: str, step: int, pairs: Sequence[Pair], margins: Tensor, base: SharedBase
) -> list[dict[str, Any]]:
    """The held-out pairs, and what the reward model makes of each."""
    decode = lambda ids: base.tokenizer.decode(ids, skip_special_tokens=True)  # noqa: E731
    return [
        {
            "stage": stage,
            "step": step,
            "split": "pairs",
            "row": pair.index,
            "prompt": decode(pair.chosen_ids[: pair.prompt_length]),
            "chosen": decode(pair.chosen_ids[pair.prompt_length :]),
            "rejected": decode(pair.rejected_ids[pair.prompt_length :]),
            "margin": margin,
            "label": pair.label,
        }
        for pair, margin in zip(pairs, margins.tolist(), strict=True)
    ]
