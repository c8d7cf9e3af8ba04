"""Scores of rows, and how well a reward model orders held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import maths
from ...data import Pair, length_batches, pad_right
from ...engine import SharedBase
from ...kit.upload import upload
from ...session.token_budget import TokenBudget

METRICS: dict[str, str] = {
    "loss": "mean over pairs of -p log s(d) - (1 - p) log s(-d), d = r_chosen - r_rejected - margin, s the sigmoid",
    "accuracy": "share of the update's pairs with r_chosen > r_rejected",
    "margin": "mean over the update's pairs of r_chosen - r_rejected",
    "grad_norm": "norm of the gradient before clipping",
    "updates/skipped": "1 where the update was skipped because loss or gradient were not finite",
    "loss_scale": "factor on the loss after the update, only where the base computes in float16",
    "learning_rate": "of the adapter and its head, in this update",
    "num_tokens": "tokens read so far",
    "epoch": "passes over the pairs so far",
    "head": "which head of an ensemble the update was of",
    "eval/accuracy": "share of held-out pairs with r_chosen > r_rejected; of an ensemble, by the mean of its heads",
    "eval/margin": "mean over held-out pairs of r_chosen - r_rejected",
    "eval/loss": "Bradley-Terry loss on held-out pairs",
    "eval/ece": "expected calibration error: mean over 10 bins of |s(|d|) - share where the higher-scored is better|",
    "eval/<name>/accuracy": "accuracy of one head of an ensemble",
    "eval/<name>/margin": "margin of one head of an ensemble",
    "eval/<name>/loss": "loss of one head of an ensemble",
    "eval/<name>/ece": "expected calibration error of one head of an ensemble",
}


@torch.no_grad()
def score(base: SharedBase, role: str, rows: Sequence[Tensor], budget: TokenBudget) -> Tensor:
    """[N] rewards of rows of tokens; `budget` is of tokens in one forward."""
    out, lengths = torch.zeros(len(rows)), [len(row) for row in rows]

    def attempt(tokens: int) -> None:
        with base.role(role, train=False):
            for batch in length_batches(lengths, max_tokens=tokens):
                out[batch] = forward_rewards(base, role, [rows[i] for i in batch]).float().cpu()

    budget.within(attempt, max(lengths), len(lengths) * max(lengths))
    return out


def forward_rewards(base: SharedBase, role: str, rows: Sequence[Tensor]) -> Tensor:
    """Rewards [N] of rows of tokens in one forward, with a gradient where one is on."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = upload(pad_right(list(rows), base.tokenizer.pad_token_id), base.device)
    return base.forwards.rewards(base.forwards.hidden(ids), lengths, role)


def describe(chosen: Tensor, rejected: Tensor, pairs: Sequence[Pair]) -> dict[str, float]:
    """Accuracy, margin, loss and calibration of rewards [N] of pairs."""
    difference = chosen - rejected
    label = torch.tensor([pair.label for pair in pairs])
    better = torch.where(label >= 0.5, difference, -difference)
    return {
        "accuracy": float((better > 0).float().mean()),
        "margin": float(difference.mean()),
        "loss": float(maths.bradley_terry(chosen, rejected, label=label).mean()),
        # Which answer is listed first is a convention, so confidence is in the answer that scores higher.
        "ece": maths.expected_calibration_error(
            torch.sigmoid(difference.abs()), torch.where(difference > 0, label, 1.0 - label)
        ),
    }


def evaluate(base: SharedBase, role: str, pairs: Sequence[Pair], budget: TokenBudget) -> dict[str, float]:
    """Accuracy, margin, loss and calibration of one head."""
    rewards = score(base, role, [p.chosen_ids for p in pairs] + [p.rejected_ids for p in pairs], budget)
    chosen, rejected = rewards.chunk(2)
    return describe(chosen, rejected, pairs)


def ensemble_scores(
    base: SharedBase, roles: Sequence[str], pairs: Sequence[Pair], budget: TokenBudget
) -> tuple[Tensor, Tensor]:
    """[N] and [N] rewards of chosen and rejected rows, the mean over the heads of an ensemble."""
    rows = [p.chosen_ids for p in pairs] + [p.rejected_ids for p in pairs]
    each = torch.stack([score(base, role, rows, budget) for role in roles])
    chosen, rejected = each.mean(0).chunk(2)
    return chosen, rejected
